/** What npm would publish: everything that users need, nothing that they do not, and no install script. */
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { copyProject } from './project.ts'

const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'))

function packed(): string[] {
  const out = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: packageRoot,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  return JSON.parse(out)[0].files.map((file: { path: string }) => file.path)
}

test('the package has the library, its types, its sources, the demo model and the command line', () => {
  const files = packed()
  for (const wanted of [
    'package.json',
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'CMakeLists.txt',
    'binding.d.ts',
    'dist/binding.d.ts',
    'dist/lib/index.js',
    'dist/lib/index.d.ts',
    'dist/lib/native.js',
    'dist/lib/native.d.ts',
    'dist/lib/cli/main.js',
    'dist/bench/decode.js',
    'lib/demo/model.safetensors',
    'lib/demo/tokenizer.json',
    'native/binding/addon.cc',
  ]) {
    expect(files).toContain(wanted)
  }
  expect(
    files.filter(path => /^(test|build|node_modules|\.ci|\.gpu)\//.test(path) || /peers\/(models|node_modules)/.test(path)),
  ).toEqual([])
})

test('nothing runs at installation, here or in what it depends on', () => {
  for (const name of ['preinstall', 'install', 'postinstall', 'prepare']) expect(manifest.scripts[name]).toBeUndefined()
  const lock = JSON.parse(readFileSync(join(packageRoot, 'package-lock.json'), 'utf8'))
  const visit = (name: string, seen = new Set<string>()): Set<string> => {
    if (seen.has(name)) return seen
    seen.add(name)
    for (const next of Object.keys(lock.packages[`node_modules/${name}`]?.dependencies ?? {})) visit(next, seen)
    return seen
  }
  const runtime = new Set(Object.keys(manifest.dependencies).flatMap(name => [...visit(name)]))
  const scripted = [...runtime].filter(name => lock.packages[`node_modules/${name}`]?.hasInstallScript)
  expect(scripted).toEqual([])
  expect(runtime.size).toBeGreaterThanOrEqual(3)
})

test('every dependency is pinned, and every entry of exports and bin exists', () => {
  for (const version of Object.values({ ...manifest.dependencies, ...manifest.devDependencies }))
    expect(version).toMatch(/^\d+\.\d+\.\d+$/)
  const targets = [
    ...Object.values(manifest.exports).flatMap(e => (typeof e === 'string' ? [e] : Object.values(e as object))),
    ...Object.values(manifest.bin),
  ]
  for (const target of targets as string[])
    expect({ target, exists: existsSync(join(packageRoot, target)) }).toEqual({ target, exists: true })
})

/** The CUDA plug-in takes minutes: that of this project, if it is built, with the stamp that says what it was built from. */
function takeCudaPlugin(to: string): boolean {
  const [from, into] = [packageRoot, to].map(root => join(root, 'build/Release'))
  if (!existsSync(join(from!, '.cuda-stamp'))) return false
  mkdirSync(into!, { recursive: true })
  for (const name of ['.cuda-stamp', 'cria_cuda.so', 'ptx_probe_cuda']) copyFileSync(join(from!, name), join(into!, name))
  return true
}

test('packed with its prebuilt addon, installed without scripts, and used: ESM, CommonJS, types, command line', () => {
  const project = copyProject()
  const user = mkdtempSync(join(tmpdir(), 'cria-user-'))
  const run = (command: string, args: string[], cwd = user, more: NodeJS.ProcessEnv = {}) =>
    execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...more } })
  try {
    const cuda = takeCudaPlugin(project)
    run('npm', ['pack', '--pack-destination', user], project) // runs prepack: builds, and makes the prebuilt addon
    if (cuda) expect(existsSync(join(project, 'build/cuda'))).toBe(false) // not a second time
    const archive = join(user, `cria-${manifest.version}.tgz`)
    expect(statSync(archive).size).toBeLessThan(15e6)
    expect(existsSync(join(project, 'build/Release/cria.node'))).toBe(true) // who packs can go on working

    writeFileSync(join(user, 'package.json'), '{ "name": "user", "private": true, "type": "module" }')
    run('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', archive])
    const installed = join(user, 'node_modules/cria')
    const prebuilt = join(installed, 'prebuilds', `${process.platform}-${process.arch}`)
    expect(existsSync(join(installed, 'build'))).toBe(false)
    const libraries = readdirSync(prebuilt).map(name => name.replace(/\..*\.node$/, '.node'))
    const plugins = existsSync(join(project, 'build/Release/cria_cuda.so')) ? ['cria_cuda.so'] : []
    expect(libraries.sort()).toEqual(['cria.node', ...plugins])

    const use = `const llama = await Llama.load('demo', { device: 'cpu' })
      const { text } = await llama.generate('The old house', { maxTokens: 8, temperature: 0 })
      await llama.close()
      console.log(devices().some(d => d.device === 'cpu'), JSON.stringify(text))`
    writeFileSync(join(user, 'esm.mjs'), `import { Llama } from 'cria'\nimport { devices } from 'cria/native'\n${use}`)
    const required = "const { Llama } = require('cria')\nconst { devices } = require('cria/native')"
    writeFileSync(join(user, 'common.cjs'), `${required}\n;(async () => { ${use} })()`)
    const printed = run(process.execPath, ['esm.mjs'])
    expect(printed).toMatch(/^true "( \w+)+/)
    expect(run(process.execPath, ['common.cjs'], user, { NODE_NO_WARNINGS: '1' })).toBe(printed)
    expect(run(join(user, 'node_modules/.bin/cria'), ['--version'])).toBe(`${manifest.version}\n`)

    mkdirSync(join(user, 'types'))
    const typed = `import { Llama, type Completion } from 'cria'\nimport { open } from 'cria/native'
      export const answer = async (): Promise<Completion> => (await Llama.load('demo')).generate('x', { maxTokens: 2 })
      export const name: string = open('cpu').name\n`
    writeFileSync(join(user, 'types/use.mts'), typed)
    const flags = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--lib', 'es2023,esnext.disposable,dom']
    run(join(packageRoot, 'node_modules/.bin/tsc'), [...flags, 'types/use.mts'])
  } finally {
    for (const folder of [project, user]) rmSync(folder, { recursive: true, force: true })
  }
}, 300_000)
