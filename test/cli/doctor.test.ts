import { readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { expect, test } from '@jest/globals'
import { packageRoot } from '../../lib/package.ts'
import { cria } from './cria.ts'

/** CRIA_SIMT that takes the first call of this kind in a file away. */
function without(call: string, file: string): NodeJS.ProcessEnv {
  const lines = readFileSync(join(packageRoot, 'native', file), 'utf8').split('\n')
  const at = lines.findIndex(line => line.trim().startsWith(call))
  return { CRIA_SIMT: `wound=${basename(file)}:${at + 1}` }
}

test('says what there is, why a device is not used, and that the CPU computes right', async () => {
  const { code, stdout, stderr } = await cria(['doctor'])
  expect([code, stderr]).toEqual([0, ''])
  expect(stdout).toMatch(/^cria \d+\.\d+\.\d+, Node v\d+/)
  expect(stdout).toMatch(/^cuda:0 {2}(not used: .{10,}|.*sm_\d+)/m)
  expect(stdout).toMatch(/^cpu {2}.* threads?, .*\n {2}self-test passed: 10 operations in .*, errors of at most 0\.\d\d%$/m)
})

test('--simt --json: the kernels of the GPU, on emulated threads', async () => {
  const { code, stdout } = await cria(['doctor', '--simt', '--json'])
  const { devices } = JSON.parse(stdout)
  const simt = devices.find((d: { device: string }) => d.device === 'simt')
  expect(simt.checks.map((check: { op: string }) => check.op)).toEqual([
    'embed',
    'rmsNorm',
    'linear',
    'ropeAppend',
    'attention',
    'added',
    'swiglu',
    'selectRows',
    'logits',
    'sample',
  ])
  for (const { error, ok } of simt.checks) expect({ small: error < 0.01, ok }).toEqual({ small: true, ok: true })
  expect(code).toBe(0)
})

test('a device that computes wrong, or fails, is told and is an error', async () => {
  // Without its barrier, a block adds up sums that are not there yet.
  const wounded = await cria(['doctor', '--simt'], '', without('sync_block(', 'machine/tile/reduce.h'))
  expect(wounded.stdout).toMatch(/^simt .*\n {2}self-test failed: 10 operations/m)
  expect(wounded.stdout).toMatch(/^ {4}rmsNorm: (Infinity|\d+\.\d\d)%, expected at most 2%$/m)
  expect(wounded.code).toBe(1)

  const failing = await cria(['doctor', '--simt'], '', without('grid_wait(', 'ops/embed.cu'))
  expect(failing.stdout).toMatch(/self-test failed: embed, .* has ended without grid_wait\(\) .*; CRIA_SIMT=/)
  expect(failing.code).toBe(1)
})
