/** The arrows of CONTRIBUTING.md, held on the sources. */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, dirname, join, normalize } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'

interface Source {
  readonly path: string
  readonly text: string
}

function sources(folder: string, pattern: RegExp): Source[] {
  return readdirSync(join(packageRoot, folder), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && pattern.test(entry.name))
    .map(entry => join(entry.parentPath ?? entry.path, entry.name).slice(packageRoot.length + 1))
    .filter(path => !/node_modules|peers\/models|fixtures/.test(path))
    .map(path => ({ path, text: readFileSync(join(packageRoot, path), 'utf8') }))
}

const native = sources('native', /\.(h|cc|cu|cuh)$/)
const lib = sources('lib', /\.ts$/)

describe('native', () => {
  // Who may include whom: a folder, and what it may see besides itself.
  const mayInclude: Record<string, readonly string[]> = {
    core: [],
    machine: ['core'],
    ops: ['core'],
    devices: ['core', 'machine', 'ops'],
    binding: ['core', 'ops', 'devices'],
    tools: ['core', 'machine'],
  }

  test.each(native.map(source => [source.path, source] as const))('%s includes only what is below it', (path, { text }) => {
    const folder = path.split('/')[1]!
    const allowed = [folder, ...mayInclude[folder]!, ...(folder === 'ops' && /\.cuh?$/.test(path) ? ['machine'] : [])]
    for (const [, include] of text.matchAll(/#include "([^"]+)"/g)) {
      const target = normalize(join(dirname(path), include!)).split('/')[1]
      expect({ include, target, allowed: allowed.includes(target!) }).toEqual({ include, target, allowed: true })
    }
  })

  test('only the binding knows N-API', () => {
    expect(native.filter(({ path, text }) => /napi/i.test(text) && !path.startsWith('native/binding/')).map(s => s.path)).toEqual(
      [],
    )
  })

  test('nothing ends the process or prints; instructions of a machine have their place', () => {
    const library = native.filter(({ path }) => !path.startsWith('native/tools/'))
    const code = (text: string) => text.replace(/\/\/.*$/gm, '')
    const uses = (pattern: RegExp) => library.filter(({ text }) => pattern.test(code(text))).map(source => source.path)
    expect(uses(/\b(abort|exit|_Exit|terminate|quick_exit)\s*\(/)).toEqual([])
    expect(uses(/\bassert\s*\(/)).toEqual([])
    expect(uses(/\b(printf|fprintf|puts|std::cout|std::cerr)\b/)).toEqual([])
    // team.cc has the ARM spelling of "pause"; vec.h keeps values in registers with empty statements; fiber.cc switches stacks.
    const mayHaveAsm = ['native/devices/team.cc', 'native/ops/vec.h', 'native/machine/fiber.cc']
    const withAsm = uses(/\basm\b/).filter(path => !mayHaveAsm.includes(path) && !path.startsWith('native/machine/ptx/'))
    expect(withAsm).toEqual([])
  })

  test('every op has its contract, its kernel, its method and its test', () => {
    const list = readFileSync(join(packageRoot, 'native/ops/ops.h'), 'utf8').match(/#define CRIA_OPS\(X\)((?:.*\\\n)*.*)/)![1]!
    const ops = [...list.matchAll(/X\((\w+)\)/g)].map(match => match[1]!)
    expect(ops.length).toBeGreaterThanOrEqual(10)
    const binding = readFileSync(join(packageRoot, 'binding.d.ts'), 'utf8')
    for (const op of ops) {
      const stem = op.replace(/(?<!^)[A-Z]/g, letter => `_${letter}`).toLowerCase()
      for (const path of [`native/ops/${stem}.h`, `native/ops/${stem}.cc`, `test/ops/${stem}.test.ts`]) {
        expect({ path, exists: existsSync(join(packageRoot, path)) }).toEqual({ path, exists: true })
      }
      expect(binding).toMatch(new RegExp(`^  ${op[0]!.toLowerCase()}${op.slice(1)}\\(`, 'm'))
    }
  })

  // A std:: function that was compiled for AVX-512 and not inlined could be the copy that the linker keeps for everybody.
  test('kernel objects give nothing to the linker outside of the namespace of their instruction set', () => {
    const folder = join(packageRoot, 'build', 'CMakeFiles')
    const objects = readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter(path => /^kernels_\w+\.dir\/.*\.o$/.test(path))
      .map(path => ({ path: join(folder, path), isa: path.match(/^kernels_(\w+)\.dir/)![1]! }))
    expect(objects.length).toBeGreaterThanOrEqual(8)
    for (const { path, isa } of objects) {
      const symbols = execFileSync('nm', ['-C', '--defined-only', path], { encoding: 'utf8' }).split('\n')
      const foreign = symbols.filter(line => / [WVu] /.test(line) && !line.includes(`cria::${isa}::`))
      expect({ path: basename(path), isa, foreign }).toEqual({ path: basename(path), isa, foreign: [] })
    }
  })
})

describe('lib', () => {
  const imports = (text: string) =>
    [...text.matchAll(/^(?:import|export)\s+(type\s)?[^'"]*?from\s+'(\.[^']+)'/gms)].map(([, type, path]) => ({
      type: type !== undefined,
      path: path!,
    }))

  /** Files that a file needs when it runs, itself included. */
  function closure(path: string, seen = new Set<string>()): Set<string> {
    if (seen.has(path)) return seen
    seen.add(path)
    const source = lib.find(s => s.path === path)
    for (const next of source ? imports(source.text) : [])
      if (!next.type) closure(normalize(join(dirname(path), next.path)), seen)
    return seen
  }

  const pure = [
    'scheduler',
    'pages',
    'sequence',
    'sampling',
    'config',
    'tokenizer',
    'chat',
    'stops',
    'detokenizer',
    'json',
    'options',
  ]
  test.each([
    ...pure,
    'inspect',
    'forward',
    'step',
    'generation',
    'engine',
    'edits',
    'lookup',
    'answer',
    'request',
    'results',
    'grammar',
  ])('%s.ts never loads the addon', name => {
    const path = `lib/${name}.ts`
    expect(lib.some(s => s.path === path)).toBe(true)
    expect([...closure(path)]).not.toContain('lib/native.ts')
  })

  test('the scheduler and the pages know tokens and pages, nothing else', () => {
    expect([...closure('lib/scheduler.ts')].sort()).toEqual(['lib/line.ts', 'lib/pages.ts', 'lib/scheduler.ts'])
    expect([...closure('lib/pages.ts')]).toEqual(['lib/pages.ts'])
  })

  test('only native.ts loads the addon, and the arrows go down', () => {
    expect(lib.filter(({ text }) => /node-gyp-build/.test(text)).map(s => s.path)).toEqual(['lib/native.ts'])
    const order = ['index', 'llama', 'engine', 'programs', 'forward'].map(name => `lib/${name}.ts`)
    for (const [i, path] of order.entries()) {
      for (const above of order.slice(0, i))
        expect({ path, needs: closure(path).has(above) && above }).toEqual({ path, needs: false })
    }
  })

  test('the library is silent', () => {
    const noisy = lib.filter(
      ({ path, text }) =>
        !path.startsWith('lib/cli/') && /console\.|process\.(stdout|exit)/.test(text.replace(/^\s*\*.*$/gm, '')),
    )
    expect(noisy.map(s => s.path)).toEqual([])
  })
})

describe('budgets', () => {
  const all = [...native, ...lib, ...sources('bench', /\.(ts|mjs)$/), ...sources('test', /\.ts$/)]
  test('no file has more than 400 lines, the forward pass fewer than 40', () => {
    const lines = (text: string) => text.trimEnd().split('\n').length
    expect(all.length).toBeGreaterThan(80)
    expect(all.filter(({ text }) => lines(text) > 400).map(({ path, text }) => `${path}: ${lines(text)}`)).toEqual([])
    expect(lines(lib.find(s => s.path === 'lib/forward.ts')!.text)).toBeLessThan(40)
  })
})
