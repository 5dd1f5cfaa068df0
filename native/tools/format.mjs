// Formats the C++ sources (--write), or says which are not (without): npm run format, npm run check.
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const files = readdirSync('native', { recursive: true, withFileTypes: true })
  .filter(entry => entry.isFile() && /\.(h|cc|cuh?)$/.test(entry.name))
  .map(entry => join(entry.parentPath ?? entry.path, entry.name))
  .sort()
const clangFormat = join('node_modules', '@wasm-fmt', 'clang-format', 'clang-format-cli.cjs')
const write = process.argv.includes('--write')

const before = new Map(files.map(file => [file, readFileSync(file, 'utf8')]))
const args = ['--style=file', ...(write ? ['-i'] : ['--dry-run', '--Werror']), ...files]
const { status, stderr } = spawnSync(process.execPath, [clangFormat, ...args], { encoding: 'utf8' })
if (write) {
  for (const file of files) if (readFileSync(file, 'utf8') !== before.get(file)) console.log(`formatted ${file}`)
} else if (status !== 0) {
  const unformatted = new Set([...stderr.matchAll(/native\/[\w/.]+/g)].map(match => match[0]))
  console.error(`not formatted (npm run format): ${[...unformatted].join(', ') || stderr}`)
}
process.exit(status ?? 1)
