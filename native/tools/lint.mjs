// Lints the C++ sources with clang-tidy (rules: .clang-tidy), which needs a finished build: npm run lint:native.
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const tidy = ['clang-tidy', 'clang-tidy-19', 'clang-tidy-14'].find(name => spawnSync(name, ['--version']).status === 0)
if (!tidy) {
  console.error('clang-tidy is not installed: apt-get install clang-tidy (Debian, Ubuntu)')
  process.exit(1)
}
const database = JSON.parse(readFileSync(join('build', 'compile_commands.json'), 'utf8'))
const folders = ['core', 'machine', 'devices', 'binding', 'ops'].map(name => join('native', name))
const files = folders.flatMap(folder =>
  readdirSync(folder)
    .filter(name => name.endsWith('.cc'))
    .map(name => join(folder, name)),
)
const known = files.filter(file => database.some(entry => entry.file.endsWith(file)))
const { status } = spawnSync(tidy, ['-p', 'build', '--quiet', '--warnings-as-errors=*', ...known], { stdio: 'inherit' })
process.exit(status ?? 1)
