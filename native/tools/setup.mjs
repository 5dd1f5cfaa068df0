// Sets up whatever is missing or out of date, and nothing else: dependencies, the native addon, the compiled TypeScript; with
// --cuda=present the CUDA plug-in for the GPUs of this machine, with --cuda=all that for all, both only where nvcc is.
// Plain JavaScript without dependencies: it runs on a fresh clone. Progress goes to stderr.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  createWriteStream,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')
process.chdir(root)

/** Fails with one sentence, without a stack. */
function refuse(sentence) {
  process.stderr.write(`cria: ${sentence}\n`)
  process.exit(1)
}

/** Folders that no step builds from. */
const skipped = new Set(['node_modules', 'peers', 'results'])

/** The contents of files and folders as one hash, so that what did not change is not built again. */
function fingerprint(...paths) {
  const hash = createHash('sha256').update(process.version)
  const add = path => {
    const found = statSync(path, { throwIfNoEntry: false })
    if (found?.isDirectory()) for (const name of readdirSync(path).sort()) skipped.has(name) || add(join(path, name))
    else if (found) hash.update(path).update(readFileSync(path))
  }
  for (const path of paths) add(path)
  return hash.digest('hex')
}

/**
 * Runs a step unless its stamp says that it has been done for these inputs, and at least these parts, and its result is there.
 * Stamps lie beside the results: whoever takes those elsewhere does not build again. The last word is how long it took, with
 * a + where the step began with what an earlier one had left.
 */
async function step(name, stamp, inputs, result, work, parts = []) {
  const key = fingerprint(...inputs)
  const [before, ...had] = existsSync(stamp) ? readFileSync(stamp, 'utf8').split(' ') : []
  if (existsSync(result) && before === key && parts.every(part => had.includes(part))) return
  const started = Date.now()
  const rest = await work(name)
  mkdirSync(dirname(stamp), { recursive: true })
  writeFileSync(stamp, [key, ...parts, `${rest ? '+' : ''}${Math.round((Date.now() - started) / 1000)}s`].join(' '))
}

/** Runs a command with its output in a log file; one line of progress; the end of the log when it fails. */
function run(what, command, args, log, tick) {
  mkdirSync(dirname(log), { recursive: true })
  const file = createWriteStream(log)
  const printed = []
  const started = Date.now()
  const tty = process.stderr.isTTY
  let last = what
  const show = text => {
    last = text
    if (tty) process.stderr.write(`\r\x1b[K${text} (${Math.round((Date.now() - started) / 1000)} s)`)
  }
  if (!tty) process.stderr.write(`${what} ...\n`)
  return new Promise(resolve => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], shell: process.platform === 'win32' })
    const timer = setInterval(() => show(last), 1000)
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', data => {
        file.write(data)
        printed.push(data)
        const progress = tick?.(String(data))
        if (progress) show(`${what} ${progress}`)
      })
    }
    child.on('error', error => file.write(String(error)))
    child.on('close', code => {
      clearInterval(timer)
      const seconds = Math.round((Date.now() - started) / 1000)
      file.end(() => {
        if (code === 0) {
          process.stderr.write(tty ? `\r\x1b[K${what}: done in ${seconds} s\n` : `${what}: done in ${seconds} s\n`)
          return resolve()
        }
        const all = Buffer.concat(printed)
        mkdirSync(dirname(log), { recursive: true }) // cmake-js may have emptied the folder, to begin anew
        writeFileSync(log, all)
        const tail = all.toString('utf8').trimEnd().split('\n').slice(-30).join('\n')
        process.stderr.write(`\n${tail}\n`)
        refuse(`${what} failed; the whole log is in ${log}`)
      })
    })
  })
}

function version(command) {
  try {
    return execFileSync(command, ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).match(
      /\d+(\.\d+)+/,
    )?.[0]
  } catch {
    return undefined
  }
}

const older = (found, wanted) => found.localeCompare(wanted, 'en', { numeric: true }) < 0

/** What building needs and this machine has not, in words. */
function missingTools() {
  const missing = []
  const compiler = process.env.CXX ?? ['c++', 'g++', 'clang++'].find(version)
  const found = compiler && version(compiler)
  if (!found) missing.push('a C++20 compiler')
  else {
    const source = '#include <concepts>\nint main() { return std::integral<int> ? 0 : 1; }\n'
    const { status } = spawnSync(compiler, ['-std=c++20', '-fsyntax-only', '-x', 'c++', '-'], { input: source })
    if (status !== 0) missing.push(`a C++20 compiler (${compiler} ${found} is too old)`)
  }
  const cmake = version('cmake')
  if (!cmake || older(cmake, '3.18')) missing.push(`cmake 3.18${cmake ? ` (${cmake} is too old)` : ''}`)
  if (!version('make') && !version('ninja')) missing.push('make')
  return missing
}

function checkTools() {
  const missing = missingTools()
  if (missing.length === 0) return
  const how =
    process.platform === 'darwin'
      ? 'xcode-select --install && brew install cmake'
      : 'apt-get install g++ cmake make (Debian, Ubuntu)'
  refuse(`building the native addon needs ${missing.join(' and ')}, which this machine has not; install: ${how}`)
}

const [major, minor] = process.versions.node.split('.').map(Number)
if (major < 20 || (major === 20 && minor < 19)) refuse(`Node 20.19 or newer is needed, this is ${process.versions.node}`)

const bin = name => join('node_modules', '.bin', name)

await step('dependencies', 'node_modules/.cria-stamp', ['package.json', 'package-lock.json'], bin('cmake-js'), async () => {
  // Not `npm ci`: it refuses a lock file in which optional packages for other platforms are missing.
  const args = ['install', '--no-save', '--ignore-scripts', '--no-audit', '--no-fund']
  await run('installing dependencies', 'npm', args, join('build', 'install.log'))
})

/** How far a build is, from what it prints. */
const percent = text => [...text.matchAll(/\[\s*(\d+%|\d+\/\d+)\]/g)].at(-1)?.[1]

await step(
  'native addon',
  'build/Release/.stamp',
  ['native', 'CMakeLists.txt', 'package-lock.json'],
  'build/Release/cria.node',
  async () => {
    checkTools()
    const parallel = String(availableParallelism())
    await run(
      'building the native addon',
      process.execPath,
      [bin('cmake-js'), 'compile', '--parallel', parallel],
      join('build', 'build.log'),
      percent,
    )
  },
)

/** Architectures to build the CUDA plug-in for, as CMake has them; none without a wish, a GPU to build for, or nvcc 13. */
function cudaArchitectures(wish) {
  const usual = join(process.env.CUDA_PATH ?? '/usr/local/cuda', 'bin') // of a toolkit that nobody put on the PATH
  if (wish && !version('nvcc') && existsSync(join(usual, 'nvcc'))) process.env.PATH += `:${usual}`
  const nvcc = wish && version('nvcc')
  if (wish === 'all') {
    if (nvcc && !older(nvcc, '13')) return ['80', '86', '89', '90a', '100', '120']
    process.stderr.write(`CUDA plug-in: not built, ${nvcc ? `nvcc is ${nvcc}, older than 13` : 'there is no nvcc'}\n`)
  }
  if (wish !== 'present') return []
  const asked = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], { encoding: 'utf8' })
  const found = (asked.stdout ?? '').match(/\d+\.\d+/g) ?? []
  if (found.length > 0 && (!nvcc || older(nvcc, '13'))) {
    const why = nvcc ? `nvcc is ${nvcc}` : 'there is no nvcc on the PATH'
    process.stderr.write(`CUDA plug-in: not built for the GPU of this machine, ${why}; it takes nvcc 13 or newer\n`)
    return []
  }
  const old = found.filter(cc => Number(cc) < 8)
  if (old.length > 0)
    process.stderr.write(`CUDA plug-in: not for a GPU of compute capability ${old.join(' or ')}; cria needs 8.0 or newer\n`)
  return [...new Set(found)].filter(cc => Number(cc) >= 8).map(cc => (cc === '9.0' ? '90a' : cc.replace('.', '')))
}

const architectures = cudaArchitectures(process.argv.find(arg => arg.startsWith('--cuda='))?.slice(7))
if (architectures.length > 0) {
  const target = join('build', 'Release', 'cria_cuda.so')
  const log = join('build', 'cuda.log')
  await step(
    `CUDA plug-in ${architectures}`,
    'build/Release/.cuda-stamp',
    ['native', 'CMakeLists.txt'],
    target,
    async () => {
      const rest = existsSync(join('build', 'cuda', 'CMakeCache.txt'))
      const options = ['compile', '-O', 'build/cuda', `--CDCRIA_CUDA=${architectures.join(';')}`]
      await run('building the CUDA plug-in', process.execPath, [bin('cmake-js'), ...options], log, percent)
      for (const name of ['ptx_probe_cuda', 'cria_cuda.so'])
        copyFileSync(join('build', 'cuda', 'Release', name), join('build', 'Release', name))
      return rest
    },
    architectures,
  )
}

await step(
  'TypeScript',
  'dist/.stamp',
  ['lib', 'bench', 'binding.d.ts', 'package.json', 'tsconfig.json', 'tsconfig.build.json'],
  'dist/lib/index.js',
  async () => {
    rmSync('dist', { recursive: true, force: true })
    await run('compiling TypeScript', process.execPath, [bin('tsc'), '-p', 'tsconfig.build.json'], join('build', 'tsc.log'))
    writeFileSync('dist/binding.d.ts', readFileSync('binding.d.ts'))
  },
)
