// npm run test:gpu:sanitize with a stand-in for compute-sanitizer, over the emulated GPU: what it makes of what the tool says.
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { devices } from '../lib/native.ts'
import { packageRoot } from '../lib/package.ts'

/** Runs the command; `script`: what compute-sanitizer is, in sh, with its own arguments already shifted away. */
function sanitize(script: string | undefined, device = 'simt') {
  const folder = mkdtempSync(join(tmpdir(), 'cria-sanitize-'))
  try {
    if (script !== undefined) {
      const shift = 'tool=$2; while [ "$1" != "$NODE" ]; do shift; done'
      writeFileSync(join(folder, 'compute-sanitizer'), `#!/bin/sh\n[ "$1" = --version ] && exit 0\n${shift}\n${script}\n`)
      chmodSync(join(folder, 'compute-sanitizer'), 0o755)
    }
    const env = { ...process.env, PATH: script === undefined ? folder : `${folder}:${process.env.PATH}`, NODE: process.execPath }
    const args = [join(packageRoot, 'test/sanitize_gpu.mjs'), '--device', device]
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8', env })
    return { status, stdout, stderr }
  } finally {
    rmSync(folder, { recursive: true })
  }
}
const summary = (errors: number) => `
case $tool in
  racecheck) echo "========= RACECHECK SUMMARY: ${errors} hazards displayed (${errors} errors, 0 warnings)" ;;
  *) echo "========= ERROR SUMMARY: ${errors} errors" ;;
esac`
// The cases of one operation stand for all: they take seconds on emulated threads.
const runOne = 'for last; do :; done; "$NODE" $2 $3 $4 -i test/ops/swiglu -t "$last"; code=$?'
const pretend = 'echo "Tests: 5 passed, 5 total"'

test('a clean run of every tool passes, and real cases ran in it', () => {
  const { status, stdout, stderr } = sanitize(`${runOne}; ${summary(0)}; exit $code`)
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  for (const tool of ['memcheck', 'racecheck', 'synccheck', 'initcheck']) {
    const ran = stdout.match(new RegExp(`^clean {2}${tool} +(\\d+) cases`, 'm'))?.[1]
    expect(Number(ran)).toBeGreaterThan(5)
    expect(Number(ran)).toBeLessThanOrEqual(60)
  }
}, 60_000)

test('what the tool finds fails the run and is shown', () => {
  const { status, stdout } = sanitize(`${pretend}; echo "========= Invalid __global__ read of size 4"; ${summary(3)}; exit 99`)
  expect(status).toBe(1)
  expect(stdout).toMatch(/^FAILED memcheck .* 3 found, exit code 99$/m)
  expect(stdout).toContain('Invalid __global__ read of size 4')
})

test('a failed test fails the run though the tool found nothing, and so does a run without tests', () => {
  expect(sanitize(`${pretend}; ${summary(0)}; exit 1`)).toMatchObject({ status: 1 })
  expect(sanitize(`${summary(0)}; exit 0`)).toMatchObject({ status: 1 })
})

test('a tool that refuses the machine, no tool, no GPU: one plain sentence', () => {
  const refused = sanitize('echo "========= Error: device is not supported by this tool"; exit 1')
  expect(refused.status).toBe(3)
  expect(refused.stderr).toMatch(/^test:gpu:sanitize was not run: .*memcheck did not finish .*: .*not supported by this tool$/m)
  // One tool that refuses neither stops the others nor hides what they find.
  const one = (errors: number) =>
    sanitize(`[ $tool = racecheck ] && echo "========= Error: not supported" && exit 1; ${pretend}; ${summary(errors)}; exit 0`)
  expect(one(0)).toMatchObject({ status: 3, stdout: expect.stringMatching(/clean {2}memcheck[\s\S]*clean {2}initcheck/) })
  expect(one(2)).toMatchObject({ status: 1, stderr: expect.stringMatching(/^.*--tool racecheck did not finish.*\n$/) })
  const none = sanitize(undefined)
  expect(none).toMatchObject({ status: 3 })
  expect(none.stderr).toMatch(/compute-sanitizer is not on the PATH/)
  if (devices().some(({ device, available }) => device === 'cuda:0' && available)) return
  const noGpu = sanitize(summary(0), 'cuda:0')
  expect(noGpu).toMatchObject({ status: 3 })
  expect(noGpu.stderr).toMatch(/^test:gpu:sanitize was not run: .*(driver|GPU|plug-in)/)
})
