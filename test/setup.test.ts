// native/tools/setup.mjs, which npm start and npm test begin with: what it says when something is missing, which plug-in it
// asks for, and that a second run does nothing.
import { spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { copyProject } from './project.ts'

let project = ''
beforeAll(() => {
  project = copyProject()
})
afterAll(() => rmSync(project, { recursive: true, force: true }))

type Tools = Record<string, string | true>

/** Runs setup.mjs in `folder` with nothing else on PATH than `tools`: name -> a shell script, or true for the machine's own. */
function setUp(folder: string, tools: Tools, nodeFlags: string[] = [], args: string[] = []) {
  const bin = join(project, 'bin')
  rmSync(bin, { recursive: true, force: true })
  mkdirSync(bin)
  for (const [name, script] of Object.entries(tools)) {
    const own = () => spawnSync('which', [name], { encoding: 'utf8' }).stdout.trim()
    if (script === true) symlinkSync(own(), join(bin, name))
    else {
      writeFileSync(join(bin, name), `#!/bin/sh\n${script}\n`)
      chmodSync(join(bin, name), 0o755)
    }
  }
  const env = { PATH: bin, HOME: process.env.HOME, CUDA_PATH: join(project, 'cuda') }
  const started = performance.now()
  const command = [...nodeFlags, 'native/tools/setup.mjs', ...args]
  const run = spawnSync(process.execPath, command, { cwd: folder, env, encoding: 'utf8' })
  return { code: run.status, out: run.stdout, says: run.stderr, ms: performance.now() - started }
}

const gcc = (works: boolean) =>
  `[ "$1" = --version ] && echo "g++ (Debian) 9.4.0" && exit 0; cat >/dev/null; exit ${works ? 0 : 1}`
const cmake = (version: string) => `echo "cmake version ${version}"`
const install = process.platform === 'darwin' ? 'xcode-select' : 'apt-get install g\\+\\+ cmake make'

describe('on a machine without', () => {
  const refused = ({ code, out, says }: ReturnType<typeof setUp>, sentence: RegExp) => {
    expect(says).toMatch(sentence)
    expect(says.trimEnd().split('\n').length).toBe(1)
    expect([code, out]).toEqual([1, ''])
    expect(existsSync(join(project, 'dist'))).toBe(false)
  }

  test('anything: one sentence names it all, and the packages', () => {
    const all = new RegExp(`^cria: building .* needs a C\\+\\+20 compiler and cmake 3\\.18 and make, .*install: ${install}`)
    refused(setUp(project, {}), all)
  })

  test('a compiler', () => {
    refused(setUp(project, { cmake: cmake('3.25.1'), make: 'echo GNU Make 4.3' }), /needs a C\+\+20 compiler, which/)
  })

  test('a compiler that is new enough', () => {
    const tools = { 'g++': gcc(false), cmake: cmake('3.25.1'), make: 'echo GNU Make 4.3', cat: true as const }
    refused(setUp(project, tools), /needs a C\+\+20 compiler \(g\+\+ 9\.4\.0 is too old\), which/)
  })

  test('a cmake that is new enough', () => {
    const tools = { 'g++': gcc(true), cmake: cmake('3.5.2'), make: 'echo GNU Make 4.3', cat: true as const }
    refused(setUp(project, tools), /needs cmake 3\.18 \(3\.5\.2 is too old\), which/)
  })

  test('a Node that is new enough', () => {
    const old = join(project, 'old.cjs')
    writeFileSync(old, `Object.defineProperty(process, 'versions', { value: { ...process.versions, node: '18.20.0' } })`)
    refused(setUp(project, {}, ['--require', old]), /^cria: Node 20\.19 or newer is needed, this is 18\.20\.0$/m)
  })
})

describe('the CUDA plug-in', () => {
  const compiles: Tools = { 'g++': gcc(true), cmake: cmake('3.25.1'), make: 'echo GNU Make 4.3', cat: true }
  const nvcc = (version: string) => `echo "Cuda compilation tools, release ${version}, V${version}.48"`
  const gpus = (...capabilities: string[]) => capabilities.map(capability => `echo ${capability}`).join('\n')
  // What it runs to build: writes down what it is asked for, and leaves empty files.
  const builder = `
    const { appendFileSync, mkdirSync, writeFileSync } = require('fs')
    const cuda = process.argv.find(arg => arg.startsWith('--CDCRIA_CUDA='))
    if (cuda) appendFileSync('asked', cuda.slice(14) + '\\n')
    const folder = cuda ? 'build/cuda/Release' : 'build/Release'
    mkdirSync(folder, { recursive: true })
    for (const name of cuda ? ['cria_cuda.so', 'ptx_probe_cuda'] : ['cria.node']) writeFileSync(folder + '/' + name, '')`
  const compiler = `
    require('fs').mkdirSync('dist/lib', { recursive: true })
    require('fs').writeFileSync('dist/lib/index.js', '')`

  beforeAll(() => {
    const modules = join(project, 'node_modules')
    rmSync(modules) // a link
    mkdirSync(join(modules, '.bin'), { recursive: true })
    copyFileSync(join(packageRoot, 'node_modules/.cria-stamp'), join(modules, '.cria-stamp'))
    writeFileSync(join(modules, '.bin/cmake-js'), builder)
    writeFileSync(join(modules, '.bin/tsc'), compiler)
  })

  /** What it says of CUDA, and the architectures that are built. */
  function ask(wish: string, tools: Tools): { says: string[]; asked: string[] } {
    for (const left of ['build', 'asked']) rmSync(join(project, left), { recursive: true, force: true })
    const { code, out, says } = setUp(project, { ...compiles, ...tools }, [], [`--cuda=${wish}`])
    expect({ code, out, says }).toEqual({ code: 0, out: '', says: expect.any(String) })
    const asked = existsSync(join(project, 'asked')) ? readFileSync(join(project, 'asked'), 'utf8').trimEnd().split('\n') : []
    expect(existsSync(join(project, 'build/Release/cria_cuda.so'))).toBe(asked.length > 0)
    return { says: says.split('\n').filter(line => line.startsWith('CUDA plug-in')), asked }
  }

  test('is not built without nvcc, nor with an old one, and says so', () => {
    expect(ask('all', {})).toEqual({ says: ['CUDA plug-in: not built, there is no nvcc'], asked: [] })
    expect(ask('all', { nvcc: nvcc('12.9') })).toEqual({
      says: ['CUDA plug-in: not built, nvcc is 12.9, older than 13'],
      asked: [],
    })
    const gpu = (why: string) => `CUDA plug-in: not built for the GPU of this machine, ${why}; it takes nvcc 13 or newer`
    expect(ask('present', { 'nvidia-smi': gpus('9.0') })).toEqual({ says: [gpu('there is no nvcc on the PATH')], asked: [] })
    expect(ask('present', { 'nvidia-smi': gpus('9.0'), nvcc: nvcc('12.9') })).toEqual({
      says: [gpu('nvcc is 12.9')],
      asked: [],
    })
  })

  const tooOld = 'CUDA plug-in: not for a GPU of compute capability 7.5; cria needs 8.0 or newer'
  test('is not built where there is no GPU, or none that is new enough, unless for all', () => {
    const broken = 'echo NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver; exit 9'
    for (const tools of [{}, { 'nvidia-smi': broken }])
      expect(ask('present', { nvcc: nvcc('13.0'), ...tools })).toEqual({ says: [], asked: [] })
    expect(ask('present', { nvcc: nvcc('13.0'), 'nvidia-smi': gpus('7.5') })).toEqual({ says: [tooOld], asked: [] })
  })

  test('is built for the GPUs of this machine, or for all', () => {
    const built = (wish: string, tools: Tools) => ask(wish, { nvcc: nvcc('13.0'), ...tools })
    expect(built('present', { 'nvidia-smi': gpus('9.0') })).toEqual({ says: [], asked: ['90a'] })
    expect(built('present', { 'nvidia-smi': gpus('8.6', '7.5', '9.0', '9.0') })).toEqual({ says: [tooOld], asked: ['86;90a'] })
    expect(built('all', {})).toEqual({ says: [], asked: ['80;86;89;90a;100;120'] })
    expect(readFileSync(join(project, 'build/Release/.cuda-stamp'), 'utf8')).toMatch(/^\w{64} 80 86 89 90a 100 120 \d+s$/)
    // All are there now: that of this machine is among them, and nothing is built again.
    const again = setUp(project, { nvcc: nvcc('13.0'), 'nvidia-smi': gpus('9.0') }, [], ['--cuda=present'])
    expect([again.code, again.says]).toEqual([0, ''])
  })

  test('is built by an nvcc that lies where toolkits lie', () => {
    const bin = join(project, 'cuda/bin')
    mkdirSync(bin, { recursive: true })
    writeFileSync(join(bin, 'nvcc'), `#!/bin/sh\n${nvcc('13.1')}\n`)
    chmodSync(join(bin, 'nvcc'), 0o755)
    expect(ask('present', { 'nvidia-smi': gpus('9.0') })).toEqual({ says: [], asked: ['90a'] })
    rmSync(join(project, 'cuda'), { recursive: true })
  })
})

test('the second run does nothing, says nothing and needs nothing', () => {
  const { code, out, says, ms } = setUp(packageRoot, {})
  expect({ code, out, says }).toEqual({ code: 0, out: '', says: '' })
  expect(ms).toBeLessThan(2000)
})
