/**
 * A Llama in numbers, from its config alone: what the weights are and weigh, what a decoded token streams, what the KV
 * cache costs, and every operation of a forward pass with its shapes, floating-point operations and bytes.
 *
 * Conventions. A linear is 2 x in x out operations a row (its bias-free multiply and add; the residual added in its
 * epilogue is not counted). Causal attention is 4 x heads x headDim for each key a query sees, exactly: position p sees
 * p + 1 keys, so S tokens from an empty cache cost 4 x heads x headDim x S (S + 1) / 2 a layer; the usual S/2 a token is
 * this but for half a key, and the softmax is left out. RMSNorm is 4 an element (square, add, two products), SwiGLU 5
 * (negate, exponential, add, quotient, product), RoPE 3 (six a pair): under 0.1% of an 8B model together. Sums above 2^53
 * (a full context of 70B) are rounded as doubles are; parameters and bytes of weights and KV are always exact.
 * Bytes are those that unfused operations move at the least: each input and weight read once, each output written once,
 * weights and KV in bf16, activations in bf16 except for the residual stream and the logits in float32.
 */
import type { LlamaConfig } from './config.ts'
import { InputError } from './errors.ts'

/** Some matrices or vectors of the file that have one role and one shape. */
export interface Part {
  /** 'embedding', 'attention norm', 'q', 'k', 'v', 'o', 'FFN norm', 'gate', 'up', 'down', 'final norm' or 'head'. */
  readonly name: string
  /** As in safetensors: [out, in] for matrices, [dim] for norms. */
  readonly shape: readonly number[]
  /** How many there are: one a layer, or 1; 0 for the head of a tied model, which is the embedding. */
  readonly count: number
  /** Elements of all of them. */
  readonly parameters: number
  /** parameters in bf16: 2 bytes each. */
  readonly bytes: number
  /** Bytes read for one decoded token: all of a linear and of the head (tied or not), 0 of the embedding and the norms. */
  readonly streamedBytes: number
}

/** Bytes that an operation moves. */
export interface Traffic {
  readonly weights: number
  readonly activations: number
  /** Read by attention, written by rope_append. */
  readonly kv: number
}

/** One operation of the forward pass; figures are for one execution, of which there are `times`. */
export interface Step {
  /** What it does here: 'qkv', 'attention norm'... */
  readonly name: string
  /** The operation of native/ops: embed, rms_norm, linear, rope_append, attention, swiglu or select_rows. */
  readonly op: string
  /** Executions: layers for a step of a layer, or 1. */
  readonly times: number
  /** Whether every layer does it. */
  readonly inLayer: boolean
  /** [rows, columns]; [rows] for token ids. */
  readonly input: readonly number[]
  /** [out, in], [dim], or absent. */
  readonly weight?: readonly number[]
  readonly output: readonly number[]
  readonly flops: number
  readonly bytes: Traffic
}

/** What inspect computes. All bytes are bf16 weights and bf16 KV. */
export interface Inspection {
  readonly config: LlamaConfig
  readonly parts: readonly Part[]
  /** Sums over parts; the norms and one embedding row that a token also reads are 0.004% of an 8B model. */
  readonly weights: { readonly parameters: number; readonly bytes: number; readonly streamedBytes: number }
  readonly kv: { readonly bytesPerToken: number; readonly contextBytes: number }
  /** Operations of one token in the linears of all layers, and in the head. */
  readonly perToken: { readonly linearFlops: number; readonly headFlops: number }
  /** The forward pass described by steps: rows through the network, tokens already cached, rows through the head. */
  readonly tokens: number
  readonly past: number
  readonly outputs: number
  /** The forward pass in order; those inLayer describe one layer. */
  readonly steps: readonly Step[]
  /** Sums over steps, layers counted. flops = linear + head + attention + other. */
  readonly totals: {
    readonly flops: number
    readonly linearFlops: number
    readonly headFlops: number
    readonly attentionFlops: number
    readonly otherFlops: number
    readonly bytes: Traffic
  }
}

/** Which forward pass to walk through. */
export interface InspectOptions {
  /** Tokens of one sequence that go through the network; default: what the context has left after past. */
  readonly tokens?: number
  /** Tokens already in the KV cache; default 0. tokens 1 and past n is a step of decoding. */
  readonly past?: number
  /** 'all' rows through the head, as for evaluation (default), or only the 'last', as generation does. */
  readonly logits?: 'all' | 'last'
}

const BF16 = 2
const F32 = 4

/**
 * Everything that can be said about a model without its weights.
 * @throws InputError ERR_OPTION_TOKENS when tokens or past are not counts, or exceed the context together
 */
export function inspect(config: LlamaConfig, options: InspectOptions = {}): Inspection {
  if (typeof config !== 'object' || config === null) {
    throw new InputError(
      'ERR_ARGUMENT',
      `inspect takes a config, as readConfig or builtinConfigs give it, found ${typeof config}`,
    )
  }
  const { layers, kvHeads, headDim, context } = config
  const { past = 0, logits = 'all' } = options
  const { tokens = context - past } = options
  if (!Number.isInteger(tokens) || !Number.isInteger(past) || tokens < 1 || past < 0 || tokens + past > context) {
    const wanted = `whole numbers of at least 1 and 0 that fit the context of ${context} together`
    throw new InputError('ERR_OPTION_TOKENS', `tokens is ${tokens} and past is ${past}, expected ${wanted}.`)
  }
  const outputs = logits === 'all' ? tokens : 1
  const parts = listParts(config)
  const steps = listSteps(config, tokens, past, outputs)
  const flopsOf = (wanted: (step: Step) => boolean) => sum(steps.filter(wanted), step => step.times * step.flops)
  const bytesOf = (kind: keyof Traffic) => sum(steps, step => step.times * step.bytes[kind])
  const kvBytes = layers * 2 * kvHeads * headDim * BF16
  const linear = (step: Step) => step.op === 'linear' && step.name !== 'head'
  const head = (step: Step) => step.name === 'head'
  const attention = (step: Step) => step.op === 'attention'
  const headFlops = flopsOf(head)
  return {
    config,
    parts,
    weights: {
      parameters: sum(parts, part => part.parameters),
      bytes: sum(parts, part => part.bytes),
      streamedBytes: sum(parts, part => part.streamedBytes),
    },
    kv: { bytesPerToken: kvBytes, contextBytes: kvBytes * context },
    perToken: { linearFlops: flopsOf(linear) / tokens, headFlops: headFlops / outputs },
    tokens,
    past,
    outputs,
    steps,
    totals: {
      flops: flopsOf(() => true),
      linearFlops: flopsOf(linear),
      headFlops,
      attentionFlops: flopsOf(attention),
      otherFlops: flopsOf(step => !linear(step) && !head(step) && !attention(step)),
      bytes: { weights: bytesOf('weights'), activations: bytesOf('activations'), kv: bytesOf('kv') },
    },
  }
}

function listParts({ layers, heads, kvHeads, headDim, dim, hidden, vocab, tied }: LlamaConfig): Part[] {
  const part = (name: string, count: number, shape: readonly number[], streams: 'streams' | 'rests'): Part => {
    const parameters = count * product(shape)
    const streamed = streams === 'streams' ? Math.max(count, 1) * product(shape) * BF16 : 0
    return { name, shape, count, parameters, bytes: parameters * BF16, streamedBytes: streamed }
  }
  return [
    part('embedding', 1, [vocab, dim], 'rests'),
    part('attention norm', layers, [dim], 'rests'),
    part('q', layers, [heads * headDim, dim], 'streams'),
    part('k', layers, [kvHeads * headDim, dim], 'streams'),
    part('v', layers, [kvHeads * headDim, dim], 'streams'),
    part('o', layers, [dim, heads * headDim], 'streams'),
    part('FFN norm', layers, [dim], 'rests'),
    part('gate', layers, [hidden, dim], 'streams'),
    part('up', layers, [hidden, dim], 'streams'),
    part('down', layers, [dim, hidden], 'streams'),
    part('final norm', 1, [dim], 'rests'),
    part('head', tied ? 0 : 1, [vocab, dim], 'streams'),
  ]
}

function listSteps(config: LlamaConfig, tokens: number, past: number, outputs: number): Step[] {
  const { layers, heads, kvHeads, headDim, dim, hidden, vocab } = config
  const q = heads * headDim
  const kv = 2 * kvHeads * headDim // of a token in a layer
  const seen = tokens * past + (tokens * (tokens + 1)) / 2 // keys, over all queries

  type Where = Pick<Step, 'times' | 'inLayer'>
  const layer: Where = { times: layers, inLayer: true }
  const once: Where = { times: 1, inLayer: false }

  const rmsNorm = (name: string, where: Where, rows: number): Step => {
    const bytes = traffic(dim * BF16, rows * dim * (F32 + BF16))
    return {
      name,
      op: 'rms_norm',
      ...where,
      input: [rows, dim],
      weight: [dim],
      output: [rows, dim],
      flops: 4 * rows * dim,
      bytes,
    }
  }
  /** perOutput: bytes moved for an output element, which is a bf16 or float32 written, or a float32 read and written back. */
  const linear = (name: string, where: Where, rows: number, [out, into]: readonly [number, number], perOutput: number): Step => {
    const bytes = traffic(out * into * BF16, rows * (into * BF16 + out * perOutput))
    const flops = 2 * rows * into * out
    return { name, op: 'linear', ...where, input: [rows, into], weight: [out, into], output: [rows, out], flops, bytes }
  }
  const residual = F32 + F32

  const embed: Step = {
    name: 'embedding',
    op: 'embed',
    ...once,
    input: [tokens],
    weight: [vocab, dim],
    output: [tokens, dim],
    flops: 0,
    bytes: traffic(tokens * dim * BF16, tokens * (4 + dim * F32)), // the rows it needs, not the table
  }
  const rope: Step = {
    name: 'rope, KV append',
    op: 'rope_append',
    ...layer,
    input: [tokens, q + kv],
    output: [tokens, q],
    flops: 3 * tokens * (q + kv / 2),
    bytes: traffic(0, tokens * (q + kv + q) * BF16, tokens * kv * BF16),
  }
  const attention: Step = {
    name: 'attention',
    op: 'attention',
    ...layer,
    input: [tokens, q],
    output: [tokens, q],
    flops: 4 * q * seen,
    bytes: traffic(0, 2 * tokens * q * BF16, (past + tokens) * kv * BF16),
  }
  const swiglu: Step = {
    name: 'swiglu',
    op: 'swiglu',
    ...layer,
    input: [tokens, 2 * hidden],
    output: [tokens, hidden],
    flops: 5 * tokens * hidden,
    bytes: traffic(0, 3 * tokens * hidden * BF16),
  }
  const last: Step = {
    name: 'last row',
    op: 'select_rows',
    ...once,
    input: [tokens, dim],
    output: [outputs, dim],
    flops: 0,
    bytes: traffic(0, outputs * dim * (F32 + F32)),
  }
  return [
    embed,
    rmsNorm('attention norm', layer, tokens),
    linear('qkv', layer, tokens, [q + kv, dim], BF16),
    rope,
    attention,
    linear('o + residual', layer, tokens, [dim, q], residual),
    rmsNorm('FFN norm', layer, tokens),
    linear('gate, up', layer, tokens, [2 * hidden, dim], BF16),
    swiglu,
    linear('down + residual', layer, tokens, [dim, hidden], residual),
    ...(outputs < tokens ? [last] : []),
    rmsNorm('final norm', once, outputs),
    linear('head', once, outputs, [vocab, dim], F32),
  ]
}

function traffic(weights: number, activations: number, kv = 0): Traffic {
  return { weights, activations, kv }
}

/**
 * The inspection as text for a terminal: plain ASCII, at most 100 columns, aligned, ending in a newline.
 * GB, MB and GFLOP are powers of ten; GiB, where it appears, is 2^30 bytes.
 */
export function formatInspection(inspection: Inspection): string {
  const { config: c, parts, weights, kv, perToken, steps, totals, tokens, past, outputs } = inspection
  const scaling = c.ropeScaling
  const rope = `RoPE theta ${c.ropeTheta}${scaling ? `, llama3 scaling x${scaling.factor} over ${scaling.originalContext}` : ''}`
  const kvGiB = kv.contextBytes < 2 ** 26 ? '' : ` (${(kv.contextBytes / 2 ** 30).toFixed(2)} GiB)`
  const share = (part: Part) => `${((100 * part.bytes) / weights.bytes).toFixed(1)}%`
  const partRow = (part: Part) => {
    const size = part.count === 0 ? ['the embedding', '', ''] : [grouped(part.parameters), si(part.bytes, 'B'), share(part)]
    return [part.name, shape(part.shape), part.count > 1 ? `x ${part.count}` : '', ...size]
  }
  const stepRow = (step: Step) => [
    (step.inLayer ? '  ' : '') + step.name,
    shape(step.input),
    step.weight ? shape(step.weight) : '',
    shape(step.output),
    step.flops === 0 ? '' : si(step.flops, 'FLOP'),
    si(traffics(step.bytes), 'B'),
  ]
  const layer = steps.filter(step => step.inLayer)
  const first = steps.indexOf(layer[0]!)
  const layerTotal = [sum(layer, step => step.flops), sum(layer, step => traffics(step.bytes))] as const
  const pass = past > 0 ? `${plural(tokens, 'token')} after ${past} in the cache` : plural(tokens, 'token')
  const lastRow =
    outputs > 1
      ? [
          '',
          `Generation puts only the last row through the head: ${si(perToken.headFlops, 'FLOP')} there, not ${si(totals.headFlops, 'FLOP')}.`,
        ]
      : []
  return `${[
    `Llama: ${plural(c.layers, 'layer')}, dim ${c.dim}, ${plural(c.heads, 'head')} on ${plural(c.kvHeads, 'KV head')} of ${c.headDim}, FFN ${c.hidden}`,
    `vocabulary ${c.vocab}${c.tied ? ' (tied)' : ''}, context ${c.context}, ${rope}`,
    '',
    'WEIGHTS in bf16 (1 GB = 10^9 bytes)',
    '',
    ...table(['part', 'shape', '', 'parameters', 'bytes', 'share'], 'llrrrr', [
      ...parts.map(partRow),
      [],
      ['total', '', '', grouped(weights.parameters), si(weights.bytes, 'B'), '100.0%'],
    ]),
    '',
    `A decoded token streams ${si(weights.streamedBytes, 'B')}: every linear and the head, not the embedding table.`,
    `It costs ${si(perToken.linearFlops, 'FLOP')} in linears and ${si(perToken.headFlops, 'FLOP')} in the head, plus attention over what came before.`,
    `KV cache in bf16: ${grouped(kv.bytesPerToken)} bytes a token, ${si(kv.contextBytes, 'B')}${kvGiB} for the full context.`,
    '',
    `FORWARD PASS over ${pass}`,
    '',
    ...table(['step', 'input', 'weight', 'output', 'work', 'moves'], 'lrrrrr', [
      ...steps.slice(0, first).map(stepRow),
      [`${c.layers} x layer`],
      ...layer.map(stepRow),
      ['  one layer', '', '', '', si(layerTotal[0], 'FLOP'), si(layerTotal[1], 'B')],
      ...steps.slice(first + layer.length).map(stepRow),
      [],
      ['total', '', '', '', si(totals.flops, 'FLOP'), si(traffics(totals.bytes), 'B')],
    ]),
    '',
    `Work:  ${split(totals.flops, { linears: totals.linearFlops, attention: totals.attentionFlops, head: totals.headFlops, 'all else': totals.otherFlops })}`,
    `Moves: ${split(traffics(totals.bytes), { weights: totals.bytes.weights, activations: totals.bytes.activations, KV: totals.bytes.kv })}, unfused`,
    ...lastRow,
  ].join('\n')}\n`
}

/** Rows as aligned lines, indented by two; an empty row is a rule. align: l or r for each column. */
function table(header: readonly string[], align: string, rows: readonly (readonly string[])[]): string[] {
  const full = [header, ...rows.filter(row => row.length === header.length)]
  const widths = header.map((_, column) => Math.max(...full.map(row => row[column]!.length)))
  const rule = `  ${'-'.repeat(sum(widths, width => width + 2) - 2)}`
  const line = (row: readonly string[]) =>
    row.length === 0
      ? rule
      : `  ${row.map((cell, i) => (align[i] === 'l' ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ')}`.trimEnd()
  return [line(header), rule, ...rows.map(line)]
}

function split(total: number, by: Readonly<Record<string, number>>): string {
  return Object.entries(by)
    .map(([name, value]) => `${name} ${((100 * value) / total).toFixed(1)}%`)
    .join(', ')
}

/** 15009316864, 'B' -> '15.01 GB'. */
function si(value: number, unit: string): string {
  const power = value < 1000 ? 0 : Math.min(6, Math.floor(Math.log10(Number(value.toPrecision(4))) / 3))
  const scaled = value / 1000 ** power
  return power === 0 ? `${value} ${unit}` : `${scaled.toFixed(scaled < 100 ? 2 : 1)} ${' kMGTPE'[power]}${unit}`
}

const grouped = (value: number) => String(value).replace(/\B(?=(\d{3})+$)/g, ',')
const plural = (count: number, noun: string) => `${count} ${noun}${count === 1 ? '' : 's'}`
const shape = (axes: readonly number[]) => `[${axes.join(', ')}]`
const traffics = (bytes: Traffic) => bytes.weights + bytes.activations + bytes.kv
const product = (axes: readonly number[]) => axes.reduce((a, b) => a * b, 1)
const sum = <T>(items: readonly T[], of: (item: T) => number) => items.reduce((total, item) => total + of(item), 0)
