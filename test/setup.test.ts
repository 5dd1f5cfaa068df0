// native/tools/setup.mjs, which npm start and npm test begin with: what it says when something is missing, and that a second
// run does nothing.
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { copyProject } from './project.ts'

let project = ''
beforeAll(() => {
  project = copyProject()
})
afterAll(() => rmSync(project, { recursive: true, force: true }))

/** Runs setup.mjs in `folder` with nothing else on PATH than `tools`: name -> a shell script, or true for the machine's own. */
function setUp(folder: string, tools: Record<string, string | true>, nodeFlags: string[] = []) {
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
  const env = { PATH: bin, HOME: process.env.HOME }
  const started = performance.now()
  const run = spawnSync(process.execPath, [...nodeFlags, 'native/tools/setup.mjs'], { cwd: folder, env, encoding: 'utf8' })
  return { code: run.status, out: run.stdout, says: run.stderr, ms: performance.now() - started }
}

const install = process.platform === 'darwin' ? 'xcode-select' : 'apt-get install g\\+\\+ cmake make'

describe('on a machine without', () => {
  const refused = ({ code, out, says }: ReturnType<typeof setUp>, sentence: RegExp) => {
    expect(says).toMatch(sentence)
    expect(says.trimEnd().split('\n').length).toBe(1)
    expect([code, out]).toEqual([1, ''])
    expect(existsSync(join(project, 'dist'))).toBe(false)
  }
  const gcc = (works: boolean) =>
    `[ "$1" = --version ] && echo "g++ (Debian) 9.4.0" && exit 0; cat >/dev/null; exit ${works ? 0 : 1}`
  const cmake = (version: string) => `echo "cmake version ${version}"`

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

test('the second run does nothing, says nothing and needs nothing', () => {
  const { code, out, says, ms } = setUp(packageRoot, {})
  expect({ code, out, says }).toEqual({ code: 0, out: '', says: '' })
  expect(ms).toBeLessThan(2000)
})
