/** npm run bench:gpu: what it does on the host, with the emulated GPU and a tiny shape. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import { marksOf } from '../../bench/gpu_run.ts'
import { serialRoofline } from '../../bench/steps.ts'
import { builtinConfigs } from '../../lib/config.ts'
import { devices } from '../../lib/native.ts'
import { packageRoot } from '../../lib/package.ts'

const folder = mkdtempSync(join(tmpdir(), 'cria-bench-'))
afterAll(() => rmSync(folder, { recursive: true }))

const run = (args: string[], env: NodeJS.ProcessEnv = {}) =>
  spawnSync(process.execPath, [join(packageRoot, 'dist/bench/gpu.js'), ...args], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  })

type Row = Record<string, number> & { op: string; case: string }

test('on the emulated GPU: every figure is there, and fits the others', () => {
  const { status, stdout, stderr } = run(['--device', 'simt', '--shape', 'tiny'], { OUT: folder })
  expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' })
  expect(readdirSync(folder)).toEqual(['gpu-simt-tiny.json'])
  const result = JSON.parse(readFileSync(join(folder, 'gpu-simt-tiny.json'), 'utf8'))
  expect(result).toMatchObject({ benchmark: 'gpu', shape: 'tiny', device: 'simt', problems: [] })
  expect(result.date).toMatch(/^\d{4}-\d\d-\d\d$/)
  expect(Object.keys(result)).toEqual(
    expect.arrayContaining(['commit', 'node', 'seconds', 'ceilings_afterwards', 'make_weights_s']),
  )

  const { ceilings } = result
  for (const name of ['read_gb_per_s', 'copy_gb_per_s', 'instructions_tflop_per_s', 'matmul_tflop_per_s'])
    expect({ name, positive: ceilings[name] > 0 }).toEqual({ name, positive: true })
  expect(ceilings).toMatchObject({
    matmul_from: 'matrix instructions alone',
    matmul_tflop_per_s: ceilings.instructions_tflop_per_s,
  })

  const kernels: Row[] = result.kernels
  expect(new Set(kernels.map(({ op }) => op)).size).toBe(11)
  for (const kernel of kernels) {
    const seconds = kernel.us! / 1e6
    expect(kernel.us).toBeGreaterThan(0)
    expect(kernel.gb_per_s).toBeCloseTo(kernel.bytes! / seconds / 1e9, 6)
    expect(kernel.share_of_read).toBeCloseTo(kernel.gb_per_s! / ceilings.read_gb_per_s, 6)
    expect(kernel.share_of_copy).toBeCloseTo(kernel.gb_per_s! / ceilings.copy_gb_per_s, 6)
    expect(kernel.share_of_matmul).toBeCloseTo(kernel.flops! / seconds / 1e12 / ceilings.matmul_tflop_per_s, 6)
  }
  const product = kernels.find(({ case: name, rows }) => name === 'gate, up' && rows === 4)
  expect(product).toMatchObject({ flops: 2 * 4 * 1024 * 256, bytes: 2 * (1024 * 256 + 4 * (256 + 1024)) })
  // Four sequences of 64 tokens: the queries, what they give, and all keys and values.
  const attention = kernels.find(({ op, rows }) => op === 'attention' && rows === 4)
  expect(attention).toMatchObject({ bytes: 2 * (2 * 4 * 256 + 2 * 4 * 64 * 128), flops: 4 * 256 * 4 * 64 })

  for (const rows of [result.decode, result.decode_on_device] as Row[][]) {
    expect(rows.map(({ batch, context }) => [batch, context])).toEqual([
      [1, 8],
      [4, 16],
    ])
    for (const { step_ms, batch, tokens_per_s, gb_per_step, share_of_copy } of rows) {
      expect(tokens_per_s).toBeCloseTo((batch! / step_ms!) * 1000, 6)
      expect(share_of_copy! * ceilings.copy_gb_per_s).toBeCloseTo((gb_per_step! / step_ms!) * 1000, 6)
    }
  }
  expect(result.prefill).toHaveLength(1)
  expect(result.prefill[0].tokens_per_s).toBeCloseTo((24 / result.prefill[0].ms) * 1000, 6)
  expect(stdout).toMatch(/^simt, tiny\n/)
  expect(stdout).toMatch(/^decode on device$/m)
})

test('without a GPU, or with a shape that is none, it is one sentence', () => {
  const shape = run(['--device', 'simt', '--shape', 'llama9'])
  expect(shape).toMatchObject({ status: 1, stdout: '' })
  expect(shape.stderr).toMatch(/^--shape is llama9, expected tiny or one of llama3-8b, .*\n$/)
  if (devices().some(({ device, available }) => device.startsWith('cuda:') && available)) return
  expect(run([])).toMatchObject({ status: 1, stdout: '', stderr: expect.stringMatching(/^There is no GPU to measure: .*\.\n$/) })
  expect(run(['--device', 'cuda:7'])).toMatchObject({ status: 1, stderr: 'cuda:7 cannot be measured: there is no such GPU.\n' })
})

test.each(['machine', 'decode'])('bench:%s: an error is one sentence', name => {
  const args = [join(packageRoot, `dist/bench/${name}.js`), '--device', 'cuda:77']
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  expect({ status, stdout, stderr }).toEqual({ status: 1, stdout: '', stderr: expect.stringMatching(/^device cuda:77: .*\n$/) })
})

test('marks: those that were measured, and whether they are met', () => {
  const decode = [
    { batch: 1, context: 64, share_of_copy: 0.81, share_of_serial_roofline_copy: 0.1 },
    { batch: 64, context: 64, share_of_copy: 0.1, share_of_serial_roofline_copy: 0.9 },
    { batch: 64, context: 1024, share_of_copy: 0.9, share_of_serial_roofline_copy: 0.59 },
  ]
  expect(marksOf(decode, [{ tokens: 2048, share_of_matmul: 0.7 }])).toEqual([
    expect.objectContaining({ wanted: 0.8, share: 0.81, met: 'yes' }),
    expect.objectContaining({ wanted: 0.6, share: 0.59, met: 'no' }),
  ])
  expect(marksOf([], [{ tokens: 8192, share_of_matmul: 0.5 }])).toMatchObject([{ wanted: 0.5, share: 0.5, met: 'yes' }])
})

test('the serial roofline is the one of DESIGN: 64 sequences of 1024 tokens on an H200', () => {
  const ceilings = { bandwidth: 4.3e12, flops: 790e12 }
  const seconds = serialRoofline(builtinConfigs['llama3-8b'], 64, { tokens: 1, past: 1023 }, ceilings)
  expect(64 / seconds / 11661).toBeCloseTo(1, 2)
})
