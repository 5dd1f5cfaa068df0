/** A copy of the project in which tests may build, pack and break things; its dependencies are this one's. */
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { packageRoot } from '../lib/package.ts'

/** Copies what git has or would add, without test/, into a new temporary folder, and returns its path. */
export function copyProject(): string {
  const folder = mkdtempSync(join(tmpdir(), 'cria-project-'))
  const list = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: packageRoot })
  const files = list.toString('utf8').split('\0')
  for (const file of files)
    if (file && !file.startsWith('test/')) cpSync(join(packageRoot, file), join(folder, file), { dereference: true })
  symlinkSync(join(packageRoot, 'node_modules'), join(folder, 'node_modules'))
  return folder
}
