/**
 * What a Llama checkpoint says about itself: config.json and generation_config.json, read, checked and given cria's names.
 * Nothing in a file is trusted or executed: only the fields named here are read (own properties, so a `__proto__` key is
 * an ordinary unknown key), every one is checked, and `auto_map` (code to download) is never followed, only reported.
 */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { ModelError } from './errors.ts'
import { readJson } from './json.ts'

/** Llama 3.1's stretching of RoPE to long contexts ("rope_type": "llama3"). All four as in the file. */
export interface RopeScaling {
  /** Wavelengths longer than originalContext / lowFreqFactor are stretched by this; at least 1. */
  readonly factor: number
  /** Positive, below highFreqFactor. */
  readonly lowFreqFactor: number
  /** Wavelengths shorter than originalContext / highFreqFactor stay; in between the two are blended. */
  readonly highFreqFactor: number
  /** Context the model was trained on before the stretching, in tokens. */
  readonly originalContext: number
}

/** How a generation is sampled when its caller does not say; from generation_config.json, greedy without one. */
export interface SamplingDefaults {
  /** False: greedy. */
  readonly doSample: boolean
  /** Divides the logits; 0 exactly when doSample is false or the file says 0: greedy. */
  readonly temperature: number
  /** Keep the smallest set of tokens with this much probability, in (0, 1]; absent: all. */
  readonly topP?: number
  /** Keep this many of the most probable tokens; absent: all. */
  readonly topK?: number
  /** Keep tokens with at least this fraction of the most probable one's probability, in [0, 1]; absent: all. */
  readonly minP?: number
}

/** A Llama network, in numbers. Sizes are counts of elements; parameters and bytes of weights and KV stay below 2^53. */
export interface LlamaConfig {
  /** Transformer layers. */
  readonly layers: number
  /** Query heads. */
  readonly heads: number
  /** Key/value heads; divides heads, each is shared by heads / kvHeads query heads. */
  readonly kvHeads: number
  /** Elements of a head, even; usually dim / heads, but files may say otherwise. */
  readonly headDim: number
  /** Width of the residual stream. */
  readonly dim: number
  /** Width of the feed-forward network between gate/up and down. */
  readonly hidden: number
  /** Rows of the embedding and of the head. */
  readonly vocab: number
  /** Longest sequence the model is made for, prompt and answer, in tokens. */
  readonly context: number
  /** Base of the RoPE frequencies. */
  readonly ropeTheta: number
  /** Absent: plain RoPE. */
  readonly ropeScaling?: RopeScaling
  /** Added to the mean square inside RMSNorm. */
  readonly eps: number
  /** The head is the embedding matrix; the file has no lm_head. */
  readonly tied: boolean
  /** Token that starts a sequence. */
  readonly bos?: number
  /** Tokens that end a generation: the union of both files, ascending; empty when neither names one. */
  readonly stopTokens: readonly number[]
  /** Sampling when the caller does not say. */
  readonly defaults: SamplingDefaults
  /** Settings found in the files that cria does not follow, as 'file: field': `auto_map`, beam search and the like. */
  readonly ignored: readonly string[]
}

/** Names for messages: the paths of the two files. */
export interface ConfigFiles {
  readonly config: string
  readonly generation: string
}

/**
 * Reads config.json and, if there is one, generation_config.json of a model folder.
 * @throws ModelError ERR_CONFIG_MISSING, ERR_CONFIG_UNREADABLE (permissions, not a regular file, over 1 MiB, not UTF-8),
 *   ERR_CONFIG_JSON (file, line, column) and all that parseConfig throws.
 */
export async function readConfig(folder: string): Promise<LlamaConfig> {
  const files = { config: join(folder, 'config.json'), generation: join(folder, 'generation_config.json') }
  const config = await readJson(files.config, { prefix: 'ERR_CONFIG' })
  if (config === undefined) {
    const found = await stat(folder).catch(() => undefined)
    const problem =
      found === undefined ? 'there is no such folder' : found.isDirectory() ? 'it has no config.json' : 'it is not a folder'
    const wanted = 'a folder in the Hugging Face layout: config.json, tokenizer.json and *.safetensors'
    fail('ERR_CONFIG_MISSING', `${folder}: ${problem}; expected ${wanted}.`)
  }
  return parseConfig(config, await readJson(files.generation, { prefix: 'ERR_CONFIG' }), files)
}

/**
 * The config in parsed JSON. Both of Hugging Face's layouts are read: rope_theta and rope_scaling at the top level (with
 * `rope_type` or the older `type`), and transformers 5's rope_parameters. Left out, as transformers fills in:
 * num_key_value_heads = num_attention_heads, head_dim = hidden_size / num_attention_heads, rope theta 10000 (Llama 1 and 2
 * files have none), hidden_act silu, no biases, untied. `pretraining_tp` splits matrices without changing the result and
 * is not read; neither is the dtype (each tensor in a safetensors file states its own).
 * @param generation parsed generation_config.json; undefined when there is none
 * @throws ModelError ERR_CONFIG_ARCHITECTURE (not Llama), ERR_CONFIG_FIELD (missing, wrong type, out of range),
 *   ERR_CONFIG_ROPE (a kind of RoPE cria has not), ERR_CONFIG_UNSUPPORTED (biases, activations, quantized weights)
 */
export function parseConfig(
  config: unknown,
  generation?: unknown,
  files: ConfigFiles = { config: 'config.json', generation: 'generation_config.json' },
): LlamaConfig {
  const c = source(files.config, config)
  const g = source(files.generation, generation ?? {})
  checkArchitecture(c)
  checkSupported(c)

  // The bounds are generous (405B has 126 layers of 128 heads, dim 16384, hidden 53248) and keep parameters, bytes of
  // weights and bytes of KV for a full context exact: at most 2^52 each.
  const dim = integer(c, 'hidden_size', 1, 2 ** 17)
  const heads = integer(c, 'num_attention_heads', 1, 2 ** 10)
  const kvHeads = integer(c, 'num_key_value_heads', 1, 2 ** 10, heads)
  if (heads % kvHeads !== 0) wrong(c, 'num_key_value_heads', `a divisor of num_attention_heads (${heads})`)
  if (field(c, 'head_dim') === undefined && dim % heads !== 0) {
    wrong(c, 'head_dim', `to be given: hidden_size (${dim}) is not a multiple of num_attention_heads (${heads})`)
  }
  const headDim = integer(c, 'head_dim', 1, 2 ** 9, dim / heads)
  if (headDim % 2 !== 0) wrong(c, 'head_dim', `an even number, as RoPE turns pairs; here it is ${headDim}`)
  const vocab = integer(c, 'vocab_size', 1, 2 ** 22)
  const bos = tokens(c, 'bos_token_id', vocab)[0] ?? tokens(g, 'bos_token_id', vocab)[0]
  const stopTokens = new Set([...tokens(c, 'eos_token_id', vocab, true), ...tokens(g, 'eos_token_id', vocab, true)])

  return {
    layers: integer(c, 'num_hidden_layers', 1, 2 ** 9),
    heads,
    kvHeads,
    headDim,
    dim,
    hidden: integer(c, 'intermediate_size', 1, 2 ** 19),
    vocab,
    context: integer(c, 'max_position_embeddings', 1, 2 ** 22),
    ...rope(c),
    eps: real(c, 'rms_norm_eps', x => x > 0 && x <= 0.1, 'a number above 0 and at most 0.1'),
    tied: flag(c, 'tie_word_embeddings'),
    ...defined({ bos }),
    stopTokens: [...stopTokens].sort((a, b) => a - b),
    defaults: samplingDefaults(g),
    ignored: ignored(c, g),
  }
}

/**
 * RoPE's inverse frequencies, float32 [headDim / 2]: position * invFreq[i] is the angle of the pair (i, i + headDim / 2).
 *
 * transformers computes them in float32, so this rounds where torch rounds: the exponent, the power, the reciprocal, and
 * each step of llama3 scaling (scalar / tensor is reciprocal times scalar in torch). Compared with torch 2.13: equal in
 * every bit for theta 500000 with heads of 64 and 128, plain and scaled, and for everything tried on torch's scalar path;
 * its vectorised pow is not always rounded correctly, which elsewhere (heads of 96) can leave a value 1 ulp away.
 * Computing in double and rounding once differs in about half of the values, for Llama's by up to 3 ulp.
 */
export function invFreq(config: Pick<LlamaConfig, 'headDim' | 'ropeTheta' | 'ropeScaling'>): Float32Array {
  const f = Math.fround
  const plain = Float32Array.from({ length: config.headDim / 2 }, (_, i) => {
    return 1 / f(f(config.ropeTheta) ** f((2 * i) / config.headDim))
  })
  if (config.ropeScaling === undefined) return plain
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalContext } = config.ropeScaling
  return plain.map(frequency => {
    const wavelength = f(f(1 / frequency) * f(2 * Math.PI))
    if (wavelength < f(originalContext / high)) return frequency
    if (wavelength > f(originalContext / low)) return frequency / f(factor)
    const smooth = f(f(f(f(1 / wavelength) * f(originalContext)) - f(low)) / f(high - low))
    return f(f(f(1 - smooth) * frequency) / f(factor)) + f(smooth * frequency)
  })
}

const llama3 = {
  layers: 32,
  heads: 32,
  kvHeads: 8,
  headDim: 128,
  dim: 4096,
  hidden: 14336,
  vocab: 128256,
  context: 8192,
  ropeTheta: 500000,
  eps: 1e-5,
  tied: false,
  bos: 128000,
  stopTokens: [128001, 128009],
  defaults: { doSample: true, temperature: 0.6, topP: 0.9 },
  ignored: [],
} as const satisfies LlamaConfig

const llama31 = {
  ...llama3,
  context: 131072,
  ropeScaling: { factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 },
  stopTokens: [128001, 128008, 128009],
} as const satisfies LlamaConfig

const llama32 = { ...llama31, ropeScaling: { ...llama31.ropeScaling, factor: 32 }, tied: true } as const satisfies LlamaConfig

/** The published shapes (Meta-Llama-3-8B-Instruct and its siblings), for benchmarks and inspection without their files. */
export const builtinConfigs = {
  'llama3-8b': llama3,
  'llama3-70b': { ...llama3, layers: 80, heads: 64, dim: 8192, hidden: 28672 },
  'llama3.1-8b': llama31,
  'llama3.2-1b': { ...llama32, layers: 16, headDim: 64, dim: 2048, hidden: 8192 },
  'llama3.2-3b': { ...llama32, layers: 28, heads: 24, dim: 3072, hidden: 8192 },
} as const satisfies Record<string, LlamaConfig>

/** A name in builtinConfigs. */
export type BuiltinConfig = keyof typeof builtinConfigs

/** Higher temperatures cannot be told from a choice at random. */
export const mostTemperature = 1e6

/** Whether name is one of builtinConfigs. */
export function isBuiltinConfig(name: string): name is BuiltinConfig {
  return Object.hasOwn(builtinConfigs, name)
}

function checkArchitecture(c: Source): void {
  const type = field(c, 'model_type')
  const architectures = field(c, 'architectures')
  const llama = Array.isArray(architectures) && architectures.includes('LlamaForCausalLM')
  const silent = architectures === undefined || (Array.isArray(architectures) && architectures.length === 0)
  if ((type === 'llama' && (llama || silent)) || (type === undefined && llama)) return
  const found = `model_type is ${show(type)}, architectures is ${show(architectures)}`
  fail('ERR_CONFIG_ARCHITECTURE', `${c.file}: ${found}; cria runs "llama" with ["LlamaForCausalLM"] and nothing else.`)
}

function checkSupported(c: Source): void {
  const refuse = (name: string, why: string) =>
    fail('ERR_CONFIG_UNSUPPORTED', `${c.file}: ${name} is ${show(field(c, name))}; ${why}.`)
  for (const name of ['attention_bias', 'mlp_bias']) {
    if (flag(c, name)) refuse(name, 'cria runs linears without bias, as all published Llama checkpoints have them')
  }
  if ((field(c, 'hidden_act') ?? 'silu') !== 'silu') refuse('hidden_act', 'cria runs the activation "silu" only')
  for (const name of ['quantization_config', 'compression_config']) {
    if (field(c, name) !== undefined)
      refuse(name, 'quantized weights are not supported yet: use the bf16 checkpoint of this model')
  }
}

/** Both layouts; what is said twice must be said alike. */
function rope(c: Source): { ropeTheta: number; ropeScaling?: RopeScaling } {
  const said = ['rope_parameters', 'rope_scaling'].filter(name => field(c, name) !== undefined)
  const blocks = said.map(name => ropeBlock(source(c.file, field(c, name), name)))
  const thetas = [...blocks.map(block => block.theta), theta(c)].filter(value => value !== undefined)
  const agree = (values: readonly unknown[]) => values.every(value => JSON.stringify(value) === JSON.stringify(values[0]))
  if (!agree(thetas)) fail('ERR_CONFIG_ROPE', `${c.file}: rope_theta is given twice and differs: ${thetas.join(' and ')}.`)
  if (!agree(blocks.map(block => block.scaling ?? null))) {
    fail('ERR_CONFIG_ROPE', `${c.file}: ${said.join(' and ')} differ; remove one.`)
  }
  partialRotary(c)
  return { ropeTheta: thetas[0] ?? 10000, ...defined({ ropeScaling: blocks[0]?.scaling }) }
}

function ropeBlock(block: Source): { theta: number | undefined; scaling: RopeScaling | undefined } {
  const type = field(block, 'rope_type') ?? field(block, 'type') ?? (field(block, 'factor') === undefined ? 'default' : undefined)
  if (type !== 'default' && type !== 'llama3') {
    fail('ERR_CONFIG_ROPE', `${block.file}: ${block.prefix}rope_type is ${show(type)}; cria has "default" and "llama3".`)
  }
  const nested = Object.entries(block.fields).find(([, value]) => typeof value === 'object' && value !== null)
  if (nested)
    fail('ERR_CONFIG_ROPE', `${block.file}: ${block.prefix}${nested[0]}: cria has one RoPE for all layers, not one per kind.`)
  partialRotary(block)
  if (type === 'default') return { theta: theta(block), scaling: undefined }
  const positive = (x: number) => x > 0 && x <= 2 ** 20
  const lowFreqFactor = real(block, 'low_freq_factor', positive, 'a number above 0')
  const scaling = {
    factor: real(block, 'factor', x => x >= 1 && x <= 2 ** 20, 'a number of at least 1'),
    lowFreqFactor,
    highFreqFactor: real(block, 'high_freq_factor', x => positive(x) && x > lowFreqFactor, `a number above ${lowFreqFactor}`),
    originalContext: integer(block, 'original_max_position_embeddings', 1, 2 ** 22),
  }
  return { theta: theta(block), scaling }
}

function theta(from: Source): number | undefined {
  if (field(from, 'rope_theta') === undefined) return undefined
  return real(from, 'rope_theta', x => x > 1 && x <= 1e15, 'a number above 1 and at most 1e15')
}

function partialRotary(from: Source): void {
  if ((field(from, 'partial_rotary_factor') ?? 1) === 1) return
  const found = show(field(from, 'partial_rotary_factor'))
  fail('ERR_CONFIG_ROPE', `${from.file}: ${from.prefix}partial_rotary_factor is ${found}; Llama turns whole heads (1).`)
}

/**
 * Greedy unless do_sample is true, as transformers. A missing temperature is 1. A missing top_k keeps every token, as vLLM
 * and Meta's own code do, and not the 50 most probable, as transformers does: that 50 stands in no file, no other sampler
 * defaults to it, and Meta publishes Llama 3 with temperature 0.6 and top_p 0.9 alone.
 */
function samplingDefaults(g: Source): SamplingDefaults {
  const optional = (name: string, valid: (x: number) => boolean, expected: string) =>
    field(g, name) === undefined ? undefined : real(g, name, valid, expected)
  const doSample = flag(g, 'do_sample')
  const temperature = optional('temperature', x => x >= 0 && x <= mostTemperature, `a number from 0 to ${mostTemperature}`) ?? 1
  const topK = integer(g, 'top_k', 0, 2 ** 31 - 1, 0)
  return {
    doSample,
    temperature: doSample ? temperature : 0,
    ...defined({
      topP: optional('top_p', x => x > 0 && x <= 1, 'a number above 0 and at most 1'),
      topK: topK === 0 ? undefined : topK,
      minP: optional('min_p', x => x >= 0 && x <= 1, 'a number from 0 to 1'),
    }),
  }
}

/** What transformers acts on and cria does not, with the value that means off. */
const neutral = {
  num_beams: 1,
  no_repeat_ngram_size: 0,
  repetition_penalty: 1,
  typical_p: 1,
  epsilon_cutoff: 0,
  eta_cutoff: 0,
  guidance_scale: 1,
}
const listed = ['auto_map', 'bad_words_ids', 'sequence_bias', 'suppress_tokens', 'begin_suppress_tokens', 'forced_eos_token_id']

function ignored(c: Source, g: Source): string[] {
  const found = listed.filter(name => field(g, name) !== undefined)
  for (const [name, off] of Object.entries(neutral)) if ((field(g, name) ?? off) !== off) found.push(name)
  const inConfig = ['auto_map', 'sliding_window'].filter(name => field(c, name) !== undefined)
  return [...inConfig.map(name => `${c.file}: ${name}`), ...found.map(name => `${g.file}: ${name}`)]
}

/** A JSON object, the file it is in and, for messages, the path to it within the file. */
interface Source {
  readonly file: string
  readonly prefix: string
  readonly fields: object
}

function source(file: string, fields: unknown, name?: string): Source {
  if (typeof fields === 'object' && fields !== null && !Array.isArray(fields)) {
    return { file, prefix: name === undefined ? '' : `${name}.`, fields }
  }
  return fail('ERR_CONFIG_FIELD', `${file}: ${name ?? 'the whole file'} is ${show(fields)}, expected an object.`)
}

/** An own property; null counts as absent, as in Python's files. */
function field(from: Source, name: string): unknown {
  return (Object.hasOwn(from.fields, name) ? (from.fields as Record<string, unknown>)[name] : undefined) ?? undefined
}

function integer(from: Source, name: string, min: number, max: number, fallback?: number): number {
  const value = field(from, name) ?? fallback
  if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
  return wrong(from, name, `an integer from ${min} to ${max}`)
}

function real(from: Source, name: string, valid: (x: number) => boolean, expected: string): number {
  const value = field(from, name)
  return typeof value === 'number' && Number.isFinite(value) && valid(value) ? value : wrong(from, name, expected)
}

function flag(from: Source, name: string): boolean {
  const value = field(from, name) ?? false
  return typeof value === 'boolean' ? value : wrong(from, name, 'true or false')
}

/** A token id, or where `list` says so several, each below vocab. */
function tokens(from: Source, name: string, vocab: number, list = false): number[] {
  const value = field(from, name) ?? []
  const ids: unknown[] = list && Array.isArray(value) ? value : field(from, name) === undefined ? [] : [value]
  const valid = (id: unknown): id is number => Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocab
  return ids.every(valid)
    ? ids
    : wrong(from, name, `${list ? 'token ids' : 'a token id'} from 0 to ${vocab - 1} (vocab_size - 1)`)
}

function wrong(from: Source, name: string, expected: string): never {
  const value = field(from, name)
  return fail('ERR_CONFIG_FIELD', `${from.file}: ${from.prefix}${name} is ${show(value)}, expected ${expected}.`)
}

function fail(code: string, message: string): never {
  throw new ModelError(code, message)
}

function show(value: unknown): string {
  if (value === undefined) return 'missing'
  const text = typeof value === 'object' || typeof value === 'string' ? JSON.stringify(value) : String(value)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}

/** Without the members that are undefined, which an optional property may not hold. */
function defined<T extends object>(members: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as never
}
