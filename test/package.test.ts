/** What npm would publish: everything that users need, nothing that they do not, and no install script. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'

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
