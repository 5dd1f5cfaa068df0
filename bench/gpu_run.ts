/** The parts of npm run bench:gpu: each gives figures for the JSON, as shares of ceilings measured in the same run. */
import type { Ceilings, Device, KvLayer } from '../binding.d.ts'
import type { LlamaConfig } from '../lib/config.ts'
import { inspect } from '../lib/inspect.ts'
import { Llama } from '../lib/llama.ts'
import { type DeviceName, open } from '../lib/native.ts'
import { Programs } from '../lib/programs.ts'
import { type Model, randomModel } from '../lib/weights.ts'
import { type Figures, median } from './harness.ts'
import { batchOf, Inputs, pageSize, type Sizes } from './inputs.ts'
import { type KernelTime, replayed } from './kernels.ts'
import { decode, decodeBytes, prefill, serialRoofline } from './steps.ts'

/** What is measured. */
export interface Plan {
  readonly config: LlamaConfig
  readonly rows: readonly number[]
  readonly sizes: Sizes
  readonly decode: readonly { readonly batch: number; readonly context: number }[]
  readonly prefill: readonly number[]
  /** Tokens to decode, and how often to prefill. */
  readonly tokens: number
  readonly repeat: number
}

/** Bytes and operations a second that shares are taken of. */
export interface Limits extends Ceilings {
  /** Of matrix products: the best that the library does, or else matrix instructions alone. */
  readonly matmul: number
  readonly matmulFrom: string
  readonly library: readonly Figures[]
}

/** The machine, and the library in the products of a prefill of the shape. */
export async function limitsOf(name: DeviceName, { config, prefill: lengths }: Plan): Promise<Limits> {
  using device = open(name)
  const ceilings = await device.measure()
  let best = { flops: 0, from: '' }
  const library: Figures[] = []
  const { heads, kvHeads, headDim, dim, hidden } = config
  const products = [
    [(heads + 2 * kvHeads) * headDim, dim],
    [dim, heads * headDim],
    [2 * hidden, dim],
    [dim, hidden],
  ] as const
  for (const rows of [Math.min(2048, Math.max(...lengths)), Math.max(...lengths)])
    for (const [out, into] of products) {
      const found = await device.measureLibrary(rows, out, into)
      if (!found) continue
      library.push({ library: found.library, rows, out, in: into, tflop_per_s: found.flops / 1e12 })
      if (found.flops > best.flops) best = { flops: found.flops, from: found.library }
    }
  if (best.flops === 0) best = { flops: ceilings.flops, from: 'matrix instructions alone' }
  return { ...ceilings, matmul: best.flops, matmulFrom: best.from, library }
}

export function kernelFigures({ op, case: name, rows, seconds, bytes, flops }: KernelTime, limits: Limits): Figures {
  return {
    op,
    case: name,
    rows,
    us: seconds * 1e6,
    bytes,
    flops,
    gb_per_s: bytes / seconds / 1e9,
    tflop_per_s: flops / seconds / 1e12,
    share_of_read: bytes / seconds / limits.read,
    share_of_copy: bytes / seconds / limits.copy,
    share_of_matmul: flops / seconds / limits.matmul,
  }
}

/** The first marks for the 8B shape, to be raised: a share of what was measured in the same run. */
export interface Mark {
  readonly mark: string
  readonly wanted: number
  readonly share: number
  readonly met: 'yes' | 'no'
}
export function marksOf(decode: readonly Figures[], prefill: readonly Figures[]): Mark[] {
  const marks = [
    ['decode, batch 1, context 64, of the copy bandwidth', 0.8, decode, { batch: 1, context: 64 }, 'share_of_copy'],
    ['decode, batch 64, context 1024, of the serial roofline', 0.6, decode, { batch: 64, context: 1024 }, 'share_of_serial_roofline_copy'],
    ['prefill of 8192 tokens, of the matmul rate', 0.5, prefill, { tokens: 8192 }, 'share_of_matmul'],
  ] as const // biome-ignore format: a mark a line
  return marks.flatMap(([mark, wanted, all, of, name]) => {
    const share = all.find(figures => Object.entries(of).every(([key, value]) => figures[key] === value))?.[name]
    return typeof share === 'number' ? [{ mark, wanted, share, met: share >= wanted ? ('yes' as const) : ('no' as const) }] : []
  })
}

/** A model of the shape through the whole engine; and its programs on the device alone. */
export class Models {
  readonly #name: DeviceName
  readonly #plan: Plan
  readonly #limits: Limits

  constructor(name: DeviceName, plan: Plan, limits: Limits) {
    this.#name = name
    this.#plan = plan
    this.#limits = limits
  }

  /** Tokens that the longest of all cases has, and that the largest keeps. A prompt of 8192 just fits into its bucket. */
  get #tokens(): { longest: number; cached: number } {
    const { tokens, prefill: lengths, decode: cases } = this.#plan
    const longest = Math.max(...lengths.map(length => length + 1), ...cases.map(({ context }) => context + tokens + 1))
    const pages = (length: number) => Math.ceil(length / pageSize)
    const most = Math.max(pages(longest), ...cases.map(({ batch, context }) => batch * pages(context + tokens)))
    return { longest, cached: most * pageSize }
  }

  /** Runs `use` with a model of random weights; its time in seconds goes to `made`. */
  async engine(use: (llama: Llama) => Promise<void>): Promise<number> {
    const { longest, cached } = this.#tokens
    const config = { ...this.#plan.config, context: longest }
    const started = performance.now()
    await using llama = await Llama.random(config, {
      device: this.#name,
      contextLength: longest,
      maxSequences: Math.max(...this.#plan.decode.map(({ batch }) => batch)),
      kvCacheTokens: cached,
    })
    await llama.generate([0], { maxTokens: 1, temperature: 0, ignoreEos: true }) // behind the making of the weights
    const made = (performance.now() - started) / 1000
    await use(llama)
    return made
  }

  async decode(llama: Llama, batch: number, context: number): Promise<Figures> {
    const { config, tokens } = this.#plan
    await decode(llama, batch, Math.min(context, 4), 2) // records the programs
    const { first, perToken } = await decode(llama, batch, context, tokens)
    const step = median(perToken)
    return { batch, context, first_token_s: first, ...this.#decodeFigures(config, batch, context + tokens / 2, step) }
  }

  #decodeFigures(config: LlamaConfig, batch: number, context: number, step: number): Figures {
    const bytes = decodeBytes(config, batch, context)
    const past = Math.floor(context) - 1
    const large = { ...config, context: past + 1 }
    const roofline = (bandwidth: number) =>
      serialRoofline(large, batch, { tokens: 1, past }, { bandwidth, flops: this.#limits.matmul })
    return {
      step_ms: step * 1000,
      tokens_per_s: batch / step,
      gb_per_step: bytes / 1e9,
      share_of_copy: bytes / step / this.#limits.copy,
      share_of_read: bytes / step / this.#limits.read,
      serial_roofline_copy_ms: roofline(this.#limits.copy) * 1000,
      share_of_serial_roofline_copy: roofline(this.#limits.copy) / step,
      share_of_serial_roofline_read: roofline(this.#limits.read) / step,
    }
  }

  async prefill(llama: Llama, length: number): Promise<Figures> {
    const seconds = median(await prefill(llama, 1, length, this.#plan.repeat))
    const { flops } = inspect(llama.config, { tokens: length, logits: 'last' }).totals
    return {
      tokens: length,
      ms: seconds * 1000,
      tokens_per_s: length / seconds,
      tflop_per_s: flops / seconds / 1e12,
      share_of_matmul: flops / seconds / this.#limits.matmul,
    }
  }

  /** Replays of decoding steps by the device's clock: what the engine and JavaScript add is not in them. */
  async onDevice(give: (figures: Figures) => boolean): Promise<void> {
    const { config, decode: cases } = this.#plan
    using device = open(this.#name)
    const model = randomModel(device, config)
    const pages = Math.max(...cases.map(({ batch, context }) => batch * Math.ceil(context / pageSize)))
    const inputs = new Inputs(device, config, this.#plan.sizes)
    const layers: KvLayer[] = []
    while (layers.length < config.layers) {
      layers.push(inputs.cache(pages))
      await device.clock() // the host keeps what it writes until the device has it: a layer at a time
    }
    for (const { batch, context } of cases) {
      const step = await stepOnDevice(device, model, config, layers, batch, context)
      const { step_ms, share_of_copy, share_of_read, ...rest } = this.#decodeFigures(config, batch, context, step)
      if (!give({ batch, context, step_ms, share_of_copy, share_of_read, ...rest })) return
    }
  }
}

async function stepOnDevice(
  device: Device,
  model: Model,
  config: LlamaConfig,
  layers: readonly KvLayer[],
  batch: number,
  context: number,
): Promise<number> {
  const limits = { maxSequences: batch, maxPages: Math.ceil(context / pageSize), maxRows: batch }
  const { buffers, program } = new Programs(device, model, layers, limits).generation({ tokens: batch })
  buffers.writeBatch(batchOf(config, batch, context, 1), pageSize)
  try {
    return await replayed(device, program)
  } finally {
    program[Symbol.dispose]()
  }
}
