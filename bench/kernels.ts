/** Times operations on a device: many of them in a program that is replayed, by the device's own clock. */
import type { Device, Program } from '../binding.d.ts'
import type { LlamaConfig } from '../lib/config.ts'
import { type DeviceName, open } from '../lib/native.ts'
import { median } from './harness.ts'
import { Inputs, type Sizes } from './inputs.ts'
import { adjust } from './ops/adjust.bench.ts'
import { attention } from './ops/attention.bench.ts'
import { embed } from './ops/embed.bench.ts'
import { fuse } from './ops/fuse.bench.ts'
import { linear } from './ops/linear.bench.ts'
import { logprobs } from './ops/logprobs.bench.ts'
import type { OpBench, OpCase } from './ops/op.ts'
import { rmsNorm } from './ops/rms_norm.bench.ts'
import { ropeAppend } from './ops/rope_append.bench.ts'
import { sample } from './ops/sample.bench.ts'
import { selectRows } from './ops/select_rows.bench.ts'
import { swiglu } from './ops/swiglu.bench.ts'

export const ops = { linear, fuse, attention, rmsNorm, ropeAppend, swiglu, embed, selectRows, adjust, sample, logprobs } as const

/** Of one operation with operands of one shape. */
export interface KernelTime {
  readonly op: string
  readonly case: string
  readonly rows: number
  readonly seconds: number
  readonly bytes: number
  readonly flops: number
}

/** Every case of an operation, for each number of rows. The device is opened and closed for it: its memory is free then. */
export async function timeOp(
  name: DeviceName,
  op: keyof typeof ops,
  config: LlamaConfig,
  rows: readonly number[],
  sizes: Sizes,
): Promise<KernelTime[]> {
  using device = open(name)
  const inputs = new Inputs(device, config, sizes)
  const bench: OpBench = ops[op]
  const times: KernelTime[] = []
  for (const count of rows)
    for (const item of bench(inputs, count))
      times.push({ op, case: item.name, rows: count, ...(await timeCase(device, item, sizes.commands)) })
  return times
}

async function timeCase(device: Device, { record, work }: OpCase, commands: number) {
  using program = device.record(op => {
    for (let i = 0; i < commands; i++) record(op, i)
  })
  const seconds = (await replayed(device, program)) / commands
  const each = (of: 'bytes' | 'flops') => work?.[of] ?? program.cost.reduce((sum, cost) => sum + cost[of], 0) / commands
  return { seconds, bytes: each('bytes'), flops: each('flops') }
}

/** Seconds of one replay: the median of five times as many as take 2 ms, after a warm-up. */
export async function replayed(device: Device, program: Program<unknown>): Promise<number> {
  const time = async (runs: number): Promise<number> => {
    const begin = device.clock()
    for (let i = 0; i < runs; i++) program.run()
    const end = device.clock()
    return ((await end) - (await begin)) / runs
  }
  await time(1)
  const runs = Math.max(1, Math.min(64, Math.ceil(0.002 / (await time(1)))))
  const times: number[] = []
  for (let i = 0; i < 5; i++) times.push(await time(runs))
  return median(times)
}
