// The conformance suite: the cases of an op, run on every device and configuration that this machine has.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { runInThisContext } from 'node:vm'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import type { BF16, Device, DeviceName, DeviceTensor, DType, F32, Recorder, StepInputs, Weight } from '../../binding.d.ts'
import type { CriaError } from '../../lib/errors.ts'
import { devices, open } from '../../lib/native.ts'
import { safetensors } from '../lib/safetensors_files.ts'
import {
  bf16Bits,
  closeBf16,
  closeF32,
  fill,
  fromBf16,
  fround,
  hash,
  Random,
  roundBf16,
  sameBits,
  type Values,
} from './numbers.ts'

export interface Configuration {
  readonly device: DeviceName
  /** CRIA_CPU: the instruction set of the cpu device. */
  readonly cpu?: string
  /** CRIA_SIMT: the seed and the habits of the emulated device. */
  readonly simt?: string
  readonly activations: 'bf16' | 'f32'
  /** Of every so many cases one. */
  readonly every?: number
  /** These ops alone. */
  readonly ops?: readonly string[]
}

/** Not jest's: its env is what native code reads, and its exit ends it. */
const realProcess = runInThisContext('process') as NodeJS.Process
export const realEnv = realProcess.env

export function openAs({ device, cpu, simt, activations }: Configuration, threads = 2, fuse = true): Device {
  const { CRIA_CPU, CRIA_SIMT } = realEnv
  if (cpu) realEnv.CRIA_CPU = cpu
  if (simt) realEnv.CRIA_SIMT = [simt, process.env.CRIA_SIMT].filter(Boolean).join(',') // the later one counts
  try {
    return open(device, { activations, fuse, ...(device === 'cpu' ? { threads } : {}) })
  } finally {
    for (const [name, before] of Object.entries({ CRIA_CPU, CRIA_SIMT })) {
      if (before === undefined) delete realEnv[name]
      else realEnv[name] = before
    }
  }
}

const modes = ['bf16', 'f32'] as const
const sets = ['scalar', ...(process.arch === 'x64' ? ['avx2', 'avx512', 'avx512bf16'] : [])]
const others = devices().filter(report => report.device !== 'cpu' && report.available)
const cutting = ['linear', 'attention', 'fuse']
export const configurations: readonly Configuration[] = [
  ...sets.flatMap(cpu => modes.map(activations => ({ device: 'cpu' as const, cpu, activations }))),
  // Both families of kernels, asynchronous copies as late and as early as may be.
  { device: 'simt', simt: 'arch=90,copies=late', activations: 'bf16' },
  { device: 'simt', simt: 'arch=120,copies=early', activations: 'bf16' },
  { device: 'simt', simt: 'arch=90,copies=early', activations: 'bf16', every: 8 },
  { device: 'simt', simt: 'arch=120,copies=late', activations: 'bf16', every: 8 },
  // Multiprocessors, and shared memory, of an H200 and an A100: work is cut otherwise.
  { device: 'simt', simt: 'arch=90,copies=late,sms=132', activations: 'bf16', every: 12, ops: cutting },
  { device: 'simt', simt: 'arch=80,copies=late,sms=108', activations: 'bf16', every: 12, ops: cutting },
  ...others.map(({ device }) => ({ device: device as DeviceName, activations: 'bf16' as const })),
]

function reasonToSkip(configuration: Configuration): string | undefined {
  try {
    openAs(configuration, 1)[Symbol.dispose]()
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}

export type Case = (lab: Lab) => Promise<void>
type Check = (name: string, run: Case) => void
/** cpuOnly: sizes that a GPU must refuse, for it takes multiples of 8 and heads of 64 and 128; named "refused: " there. */
type Define = (check: Check, cpuOnly: Check) => void

/** Runs the cases of an op everywhere. A failure tells the seed; CRIA_SEED replays it. */
export function conforms(op: string, define: Define): void {
  for (const configuration of configurations) {
    const { device, cpu, simt, activations, every = 1, ops = [op] } = configuration
    if (!ops.includes(op)) continue
    const name = `${op} on ${[device, cpu, simt, activations].filter(Boolean).join(' ')}`
    const reason = reasonToSkip(configuration)
    if (reason !== undefined) {
      test.skip(`${name}: ${reason}`, () => {})
      continue
    }
    describe(name, () => {
      const labs: Lab[] = []
      beforeAll(() => void labs.push(new Lab(configuration)))
      afterAll(() => {
        for (const lab of labs) lab[Symbol.dispose]()
      })
      for (const [title, run, onGpu] of chosen(define).filter((_, i) => i % every === every >> 1)) {
        const refused = device !== 'cpu' && !onGpu
        test(`${refused ? 'refused: ' : ''}${title}`, async () => {
          const seed = Number(process.env.CRIA_SEED ?? hash(`${op} ${title}`))
          labs[0]!.random = new Random(seed)
          try {
            if (refused) await expect(run(labs[0]!)).rejects.toMatchObject({ code: 'ERR_DEVICE_UNSUPPORTED' })
            else await run(labs[0]!)
          } catch (error) {
            if (process.env.CRIA_BAIL) realProcess.exit(1) // jest would run the rest of the file
            if (error instanceof Error) error.message += ` (CRIA_SEED=${seed})`
            throw error
          }
        })
      }
    })
  }
}

/** All cases; with CRIA_CASES=n, for slow tools, about n of them from the first to the last. */
function chosen(define: Define): [title: string, run: Case, onGpu: boolean][] {
  const all: [string, Case, boolean][] = []
  const add = (onGpu: boolean) => (title: string, run: Case) => void all.push([title, run, onGpu])
  define(add(true), add(false))
  const most = Number(process.env.CRIA_CASES ?? all.length)
  return all.filter((_, i) => Math.floor((i * most) / all.length) !== Math.floor(((i + 1) * most) / all.length))
}

/** A tensor of the device together with the values that it really holds. */
export interface Filled<D extends DType> {
  readonly tensor: DeviceTensor<D>
  readonly values: Values
}
type Bits = Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer>
export type Results = Record<string, DeviceTensor>

/** An open device, and short words for what tests do with it. */
export class Lab {
  readonly device: Device
  readonly configuration: Configuration
  readonly mode: 'bf16' | 'f32'
  random = new Random(1)

  /** Recorded before every program: the cpu device runs small programs on one thread. */
  readonly #ballast: ((op: Recorder) => void) | undefined

  constructor(configuration: Configuration, threads = 2, ballast = false, fuse = true) {
    this.configuration = configuration
    this.device = openAs(configuration, threads, fuse)
    this.mode = this.device.activation
    if (!ballast) return
    const x = this.device.tensor(this.mode as 'bf16', [1024, 128])
    const weight = this.device.random([384, 128], 1, 1)
    this.#ballast = op => void op.linear(x, weight)
  }
  [Symbol.dispose](): void {
    this.device[Symbol.dispose]()
  }

  /** Runs `use` once with a device of each number of threads, which all take part in every command. */
  async withThreads(use: (lab: Lab) => Promise<void>): Promise<void> {
    for (const threads of this.device.name === 'cpu' ? [1, 2, 3] : [1]) {
      const lab = new Lab(this.configuration, threads, threads > 1)
      try {
        await use(lab)
      } finally {
        lab[Symbol.dispose]()
      }
    }
  }

  /** A head size: the CPU takes any, a GPU 64 or 128. */
  anyHead(size: number): number {
    return this.device.name === 'cpu' ? size : 64
  }
  /** A size: the CPU takes any, a GPU multiples of 8. */
  anySize(size: number): number {
    return this.device.name === 'cpu' ? size : Math.ceil(size / 8) * 8
  }
  /** The values as this device keeps activations: what tests compute references from. */
  round(values: ArrayLike<number>): Values {
    return fill(new Float64Array(values.length), values, this.mode === 'bf16' ? roundBf16 : fround)
  }
  fill<D extends DType>(dtype: D, shape: readonly number[], values: ArrayLike<number>): DeviceTensor<D> {
    const tensor = this.device.tensor(dtype, shape)
    this.rewrite(tensor, values)
    return tensor
  }
  rewrite(tensor: DeviceTensor, values: ArrayLike<number>): void {
    const n = values.length
    const array = { bf16: () => fill(new Uint16Array(n), values, bf16Bits), f32: () => fill(new Float32Array(n), values) }
    const whole = { i32: () => fill(new Int32Array(n), values), u32: () => fill(new Uint32Array(n), values) }
    this.device.write(tensor, { ...array, ...whole }[tensor.dtype]())
  }
  f32(shape: readonly number[], values: ArrayLike<number>): Filled<'f32'> {
    const rounded = fill(new Float64Array(values.length), values, fround)
    return { tensor: this.fill('f32', shape, rounded), values: rounded }
  }
  i32(values: ArrayLike<number>, shape: readonly number[] = [values.length]): DeviceTensor<'i32'> {
    return this.fill('i32', shape, values)
  }
  activation(shape: readonly number[], values: ArrayLike<number>): Filled<'bf16'> {
    const rounded = this.round(values)
    return { tensor: this.fill(this.mode as 'bf16', shape, rounded), values: rounded }
  }

  /** An exact weight, loaded from a file in which NaN lies before and after it. */
  async weight(shape: readonly number[], values: ArrayLike<number>): Promise<Weight> {
    const folder = mkdtempSync(join(tmpdir(), 'cria-ops-'))
    try {
      const poison = { dtype: 'BF16', shape: [64], data: bytesOf(new Float64Array(64).fill(Number.NaN)) }
      const tensors = [
        { ...poison, name: 'before' },
        { name: 'weight', dtype: 'BF16', shape, data: bytesOf(values) },
        { ...poison, name: 'after' },
      ]
      const path = join(folder, 'weights.safetensors')
      writeFileSync(path, safetensors(tensors))
      return (await this.device.weights([path])).get('weight')!
    } finally {
      rmSync(folder, { recursive: true })
    }
  }

  async bits(tensor: DeviceTensor): Promise<Bits> {
    const count = tensor.shape.reduce((a, b) => a * b, 1)
    const bytes = new Uint8Array(count * (tensor.dtype === 'bf16' ? 2 : 4))
    const { buffer } = await this.device.read(tensor, bytes)
    return tensor.dtype === 'bf16' ? new Uint16Array(buffer) : new Uint32Array(buffer)
  }
  async values(tensor: DeviceTensor): Promise<Values> {
    const bits = await this.bits(tensor)
    if (tensor.dtype === 'bf16') return fill(new Float64Array(bits.length), bits, fromBf16)
    const type = { f32: Float32Array, i32: Int32Array, u32: Uint32Array }[tensor.dtype]
    return new Float64Array(new type(bits.buffer))
  }

  /** Records, runs once and reads the values of everything that `body` returns. */
  async run<R extends Results>(body: (op: Recorder) => R): Promise<{ [K in keyof R]: Values }> {
    const program = this.device.record(op => {
      this.#ballast?.(op)
      return body(op)
    })
    program.run()
    const read = await Promise.all(Object.entries(program.outputs).map(async ([k, t]) => [k, await this.values(t)] as const))
    program[Symbol.dispose]()
    return Object.fromEntries(read) as { [K in keyof R]: Values }
  }
  /** What record() throws has that code, and the tensors stay as they are. */
  async rejects(code: string, body: (op: Recorder) => unknown, ...unchanged: readonly DeviceTensor[]): Promise<void> {
    const before = await Promise.all(unchanged.map(tensor => this.bits(tensor)))
    let thrown: unknown = 'nothing'
    try {
      this.device.record(op => ({ y: body(op) as DeviceTensor })).run()
    } catch (error) {
      thrown = (error as CriaError).code
    }
    if (thrown !== code) throw new Error(`${thrown} was thrown, expected ${code}`)
    for (const [i, tensor] of unchanged.entries()) sameBits(await this.bits(tensor), before[i]!, `tensor ${i}`)
  }
  /** As run, for one tensor. */
  async one(body: (op: Recorder) => DeviceTensor): Promise<Values> {
    return (await this.run(op => ({ y: body(op) }))).y
  }

  /** Activations against the exact result; in the float32 mode by NMSE: errors of 2^-24 an operation, squared, and room. */
  close(found: Values, exact: Values, slack?: ArrayLike<number>): void {
    if (this.mode === 'f32') closeF32(found, exact, 1e-12)
    else closeBf16(found, exact, slack)
  }

  /**
   * Rows that are alive do not depend on those that are not, and dead rows are not written. `build` gets a residual stream
   * and activations whose number of live rows is in a device buffer.
   */
  async checkDeadRows(dim: number, build: (op: Recorder, x: F32, a: BF16, step: StepInputs) => DeviceTensor): Promise<void> {
    const rows = 9
    const table = await this.weight([3 * rows, dim], this.random.normals(3 * rows * dim))
    const ones = await this.weight([dim], new Float64Array(dim).fill(1))
    const from = (first: number) => Array.from({ length: rows }, (_, i) => first + i)
    const step = {
      tokens: this.i32(from(0)),
      source: this.i32(new Array(rows).fill(-1)),
      queryStart: this.i32([0, rows]),
      outputs: this.i32(from(0)),
    } as unknown as StepInputs
    const program = this.device.record(op => {
      const x = op.embed(table, step)
      return { y: build(op, x, op.rmsNorm(x, ones, 1e-5), step) }
    })
    const width = program.outputs.y.shape.slice(1).reduce((a, b) => a * b, 1)
    const replay = async (first: number, live = rows) => {
      this.rewrite(step.tokens, from(first))
      this.rewrite(step.queryStart, [0, live])
      this.rewrite(step.outputs, from(0).fill(-1, live))
      program.run()
      return this.values(program.outputs.y)
    }
    // Results have two copies and inputs one: between two runs that write the same copy, another run leaves its rows in the
    // inputs. A dead row that is computed nevertheless is computed from those.
    const between = () => replay(rows)
    const all = await replay(2 * rows)
    for (const live of [0, 1, 4, 9]) {
      await between()
      const before = await replay(0)
      await between()
      const mixed = await replay(2 * rows, live)
      sameBits(mixed.subarray(0, live * width), all.subarray(0, live * width), `with ${live} live rows, live element`)
      sameBits(mixed.subarray(live * width), before.subarray(live * width), `with ${live} live rows, dead element`)
    }
  }
}

const bytesOf = (values: ArrayLike<number>) => new Uint8Array(fill(new Uint16Array(values.length), values, bf16Bits).buffer)

/** Rows `rows` of values [any, width]. */
export function gather(values: Values, width: number, rows: readonly number[]): Values {
  const found = new Float64Array(rows.length * width)
  rows.forEach((row, i) => void found.set(values.subarray(row * width, (row + 1) * width), i * width))
  return found
}

export const by8 = (size: number): boolean => size % 8 === 0
export const dims = [1, 3, 8, 24, 40, 100, 257] as const
/** Sizes that a GPU takes as well: multiples of 8, of nothing larger. */
export const dimsOf8 = [8, 24, 40, 104, 136, 264, 520] as const
export const rowCounts = [1, 7, 17, 54, 97] as const
export const sizes: readonly (readonly [rows: number, dim: number])[] = dimsOf8.flatMap(dim =>
  [...rowCounts, 577].map(rows => [rows, dim] as const),
)

/** An op that looks at each row alone, `run` on some of `rows` rows: all of them, which have the same bits again and among others. */
export async function byRows(lab: Lab, rows: number, run: (rows: readonly number[]) => Promise<Values>): Promise<Values> {
  const every = [...Array(rows).keys()]
  const all = await run(every)
  sameBits(await run(every), all, 'again: element')
  const some = lab.random.shuffled(every).slice(0, Math.ceil(rows / 3))
  sameBits(await run(some), gather(all, all.length / rows, some), `rows ${some}: element`)
  return all
}
