/** Options of load and generate: checked, and filled in. Pure. */
import type { LlamaConfig } from './config.ts'
import type { EngineLimits } from './engine.ts'
import { DeviceError, InputError } from './errors.ts'
import type { Format } from './grammar.ts'
import {
  type LogitRules,
  logitRules,
  type SamplingOptions,
  type SamplingParameters,
  samplingParameters,
  show,
} from './sampling.ts'
import { mostGuesses } from './scheduler.ts'

/** How a model is loaded, and what it may use. */
export interface LoadOptions {
  /** 'auto' (the first GPU, else the CPU; CRIA_DEVICE replaces it), 'cpu' or a GPU: 'cuda:0', 'cuda:1', ... */
  readonly device?: string | undefined
  /** CPU threads; default: as many as the process may use. */
  readonly threads?: number | undefined
  /** Longest sequence, in tokens; at most and by default the model's. */
  readonly contextLength?: number | undefined
  /** Sequences computed at once; others wait. Default 256, on the CPU 16. */
  readonly maxSequences?: number | undefined
  /**
   * Tokens computed in one step, at least maxSequences: a longer prompt takes several, and others generate meanwhile.
   * Default 2048, on the CPU 256.
   */
  readonly maxBatchTokens?: number | undefined
  /** Generations that wait because maxSequences others run; more are refused with ERR_BUSY. Default 4096. */
  readonly maxQueue?: number | undefined
  /** Whether a prompt may begin with what earlier ones have left in the key/value cache. The answer is the same. Default true. */
  readonly prefixCache?: boolean | undefined
  /** Whether a step is prepared while the one before it runs. The answer is the same. Default true. */
  readonly pipeline?: boolean | undefined
  /**
   * Tokens that the key/value cache holds, of all sequences together. Default: full contexts for maxSequences, or if that
   * is less, what the weights leave of a GPU's memory but for a tenth of it, or a quarter of the machine's; and at least
   * one context.
   */
  readonly kvCacheTokens?: number | undefined
  /** Tokens of a page of the key/value cache; default 16. */
  readonly pageSize?: number | undefined
  /** What activations are kept in: 'f32' is slower and for comparison with references. Default 'bf16'. */
  readonly activations?: 'bf16' | 'f32' | undefined
  /** Neighbouring operations as one kernel, on a GPU; the bits are the same without. Default true. */
  readonly fuse?: boolean | undefined
  /** Bytes of weights that are where they are computed with: read from the files, and on a GPU copied to it. */
  readonly onProgress?: ((bytes: number, total: number) => void) | undefined
  /** Stops loading: load() rejects with its reason. */
  readonly signal?: AbortSignal | undefined
}

/** How a text is continued. */
export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate; default and at most: up to the end of the context. By default no more than the cache can hold. */
  readonly maxTokens?: number | undefined
  /** Tokens before which the generation does not end: stop tokens cannot come, stop strings are not looked for. Default 0. */
  readonly minTokens?: number | undefined
  /** How many of the most probable tokens to report at each place, with their log-probabilities: 0 to 20. Default 0. */
  readonly topLogprobs?: number | undefined
  /** Reports the log-probability of every token of the prompt, too. */
  readonly promptLogprobs?: boolean | undefined
  /**
   * A whole number from -1000 to 1000; higher goes first. One step more overtakes 64 requests that came earlier, so nobody
   * waits for ever. Default 0.
   */
  readonly priority?: number | undefined
  /**
   * Tokens guessed at once from what the text repeats (no second model), and verified in one step: 0 to 16. The answer is
   * the same. Default 0: it pays off where answers quote their prompts. Not together with penalties, biases, minTokens or
   * a format, with which nothing is guessed.
   */
  readonly promptLookup?: number | undefined
  /** What the answer has to look like. */
  readonly format?: Format | undefined
  /** Text that ends the generation and is not part of it: one, or up to 16, of at most 1024 characters each. */
  readonly stop?: string | readonly string[] | undefined
  /** Token ids that end the generation, besides the model's own; at most 64. */
  readonly stopTokens?: readonly number[] | undefined
  /** Goes on after the model's own stop tokens; for benchmarks. */
  readonly ignoreEos?: boolean | undefined
  /** Ends the generation: it rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

/** Of an evaluation. */
export interface LogitsOptions {
  /** Ends the evaluation: it rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

/** A generation's options with everything filled in. */
export interface Request {
  readonly maxTokens: number
  readonly minTokens: number
  readonly sampling: SamplingParameters
  readonly logits: LogitRules
  readonly topLogprobs: number
  readonly promptLogprobs: boolean
  readonly priority: number
  readonly promptLookup: number
  readonly format: Format | undefined
  readonly stop: readonly string[]
  readonly stopTokens: ReadonlySet<number>
  readonly signal: AbortSignal | undefined
}

const loadNames = [
  'device',
  'threads',
  'contextLength',
  'maxSequences',
  'maxBatchTokens',
  'maxQueue',
  'prefixCache',
  'pipeline',
  'kvCacheTokens',
  'pageSize',
  'activations',
  'fuse',
  'onProgress',
  'signal',
]
const generateNames = [
  'maxTokens',
  'minTokens',
  'stop',
  'stopTokens',
  'ignoreEos',
  'signal',
  'temperature',
  'topP',
  'topK',
  'minP',
  'seed',
  'repetitionPenalty',
  'frequencyPenalty',
  'presencePenalty',
  'logitBias',
  'topLogprobs',
  'promptLogprobs',
  'priority',
  'promptLookup',
  'format',
]

/** Of the cache: its places are 32-bit numbers. */
const mostTokens = 2 ** 30

/** @throws InputError ERR_OPTION_UNKNOWN, ERR_OPTION_TYPE, ERR_OPTION_RANGE */
export function loadOptions(options: LoadOptions): void {
  refuseUnknown('load', options, loadNames)
  if (options.device !== undefined && typeof options.device !== 'string') {
    throw new InputError('ERR_OPTION_TYPE', `device is ${show(options.device)}, expected 'auto', 'cpu' or 'cuda:N'`)
  }
  whole('threads', options.threads, 1, 1024)
  whole('contextLength', options.contextLength, 1)
  whole('maxSequences', options.maxSequences, 1, 4096)
  whole('maxBatchTokens', options.maxBatchTokens, 1)
  whole('maxQueue', options.maxQueue, 1)
  flag('prefixCache', options.prefixCache)
  flag('pipeline', options.pipeline)
  whole('kvCacheTokens', options.kvCacheTokens, 1, mostTokens)
  whole('pageSize', options.pageSize, 1)
  const { activations } = options
  if (activations !== undefined && activations !== 'bf16' && activations !== 'f32') {
    throw new InputError('ERR_OPTION_TYPE', `activations is ${show(activations)}, expected 'bf16' or 'f32'`)
  }
  callable('onProgress', options.onProgress)
  isSignal(options.signal)
}

/** @throws InputError ERR_OPTION_UNKNOWN, ERR_OPTION_TYPE */
export function logitsOptions(options: LogitsOptions): void {
  refuseUnknown('logits', options, ['signal'])
  isSignal(options.signal)
}

/** What limits depend on, of a device. */
export interface Machine {
  /** Bytes. */
  readonly memory?: number | undefined
  readonly gpu?: boolean | undefined
  /** Bytes that are left when the weights are there; absent where weights and cache have no memory of their own. */
  readonly free?: number | undefined
}

/**
 * The engine's sizes for a model.
 * @throws InputError ERR_OPTION_RANGE; DeviceError ERR_OUT_OF_MEMORY: the key/value cache alone is larger than the memory
 */
export function limitsFor(
  config: LlamaConfig,
  options: LoadOptions,
  { memory = 2 ** 34, gpu = false, free }: Machine = {},
): EngineLimits {
  const context = options.contextLength ?? config.context
  whole('contextLength', context, 1, config.context)
  const maxSequences = options.maxSequences ?? (gpu ? 256 : 16)
  const pageSize = Math.min(options.pageSize ?? 16, context)
  const maxBatchTokens = options.maxBatchTokens ?? Math.max(maxSequences, Math.min(context, gpu ? 2048 : 256))
  if (maxBatchTokens < maxSequences) {
    const expected = `at least maxSequences (${maxSequences})`
    throw new InputError('ERR_OPTION_RANGE', `maxBatchTokens is ${maxBatchTokens}, expected ${expected}`)
  }
  const bytesPerToken = config.layers * config.kvHeads * config.headDim * 2 * (options.activations === 'f32' ? 4 : 2)
  // Of a GPU's memory a tenth stays for activations, which come after the cache; the CPU's has other users.
  const affordable = Math.max(context, Math.floor((free === undefined ? memory / 4 : free - memory / 10) / bytesPerToken))
  const tokens = options.kvCacheTokens ?? Math.min(maxSequences * context, affordable)
  if (tokens * bytesPerToken > memory) {
    const needs = `a key/value cache of ${tokens} tokens takes ${tokens * bytesPerToken} bytes, and the device has ${memory}`
    throw new DeviceError('ERR_OUT_OF_MEMORY', `${needs}; lower contextLength or kvCacheTokens`)
  }
  return {
    context,
    maxSequences,
    maxBatchTokens,
    maxQueue: options.maxQueue ?? 4096,
    pageSize,
    pages: Math.ceil(tokens / pageSize),
    prefixCache: options.prefixCache ?? true,
    pipeline: options.pipeline ?? true,
  }
}

/**
 * room: tokens that the context still has after the prompt; fits: those that the key/value cache can have after it.
 * @throws InputError ERR_OPTION_UNKNOWN, ERR_OPTION_TYPE, ERR_OPTION_RANGE, ERR_OPTION_STOP
 */
export function request(options: GenerateOptions, config: LlamaConfig, room: number, fits = room): Request {
  refuseUnknown('generate', options, generateNames)
  whole('maxTokens', options.maxTokens, 1)
  whole('minTokens', options.minTokens, 0)
  whole('topLogprobs', options.topLogprobs, 0, 20)
  whole('priority', options.priority, -1000, 1000)
  whole('promptLookup', options.promptLookup, 0, mostGuesses)
  flag('promptLogprobs', options.promptLogprobs)
  flag('ignoreEos', options.ignoreEos)
  isSignal(options.signal)
  const given = options.stop === undefined ? [] : options.stop
  const stop = typeof given === 'string' ? [given] : given
  if (!Array.isArray(stop) || stop.length > 16 || stop.some(s => typeof s !== 'string' || s.length > 1024)) {
    const expected = 'a string or at most 16 of them, of at most 1024 characters each'
    throw new InputError('ERR_OPTION_STOP', `stop is ${show(options.stop)}, expected ${expected}`)
  }
  const extra = options.stopTokens === undefined ? [] : options.stopTokens
  const valid =
    Array.isArray(extra) &&
    extra.length <= 64 &&
    Array.from(extra).every(id => Number.isInteger(id) && id >= 0 && id < config.vocab)
  if (!valid) {
    const expected = `at most 64 whole numbers from 0 to ${config.vocab - 1}`
    throw new InputError('ERR_OPTION_RANGE', `stopTokens is ${show(extra)}, expected ${expected}`)
  }
  if (options.format !== undefined && options.ignoreEos) {
    throw new InputError('ERR_OPTION_RANGE', 'ignoreEos is true, expected false: a format ends with a stop token')
  }
  const maxTokens = Math.min(options.maxTokens ?? Math.max(fits, 1), room)
  const minTokens = options.minTokens ?? 0
  if (minTokens > maxTokens) {
    const why = maxTokens === options.maxTokens ? 'maxTokens' : 'what the context has room for'
    throw new InputError('ERR_OPTION_RANGE', `minTokens is ${minTokens}, expected at most ${maxTokens} (${why})`)
  }
  return {
    maxTokens,
    minTokens,
    sampling: samplingParameters(options, config.defaults),
    logits: logitRules(options, config.vocab),
    topLogprobs: options.topLogprobs ?? 0,
    promptLogprobs: options.promptLogprobs ?? false,
    priority: options.priority ?? 0,
    promptLookup: options.promptLookup ?? 0,
    format: options.format,
    stop,
    stopTokens: new Set([...(options.ignoreEos ? [] : config.stopTokens), ...extra]),
    signal: options.signal,
  }
}

function refuseUnknown(what: string, options: object, known: readonly string[]): void {
  if (typeof options !== 'object' || options === null) {
    throw new InputError('ERR_OPTION_TYPE', `the options of ${what} are ${show(options)}, expected an object`)
  }
  const unknown = Object.keys(options).find(name => !known.includes(name))
  if (unknown === undefined) return
  throw new InputError('ERR_OPTION_UNKNOWN', `${what} has no option ${unknown}; there are ${known.join(', ')}`)
}

function whole(name: string, value: number | undefined, least: number, most = Number.MAX_SAFE_INTEGER): void {
  if (value === undefined || (Number.isInteger(value) && value >= least && value <= most)) return
  const range = most === Number.MAX_SAFE_INTEGER ? `from ${least} on` : `from ${least} to ${most}`
  throw new InputError('ERR_OPTION_RANGE', `${name} is ${show(value)}, expected a whole number ${range}`)
}

function flag(name: string, value: unknown): void {
  if (value === undefined || typeof value === 'boolean') return
  throw new InputError('ERR_OPTION_TYPE', `${name} is ${show(value)}, expected true or false`)
}

function callable(name: string, value: unknown): void {
  if (value === undefined || typeof value === 'function') return
  throw new InputError('ERR_OPTION_TYPE', `${name} is ${show(value)}, expected a function`)
}

function isSignal(value: unknown): void {
  const { addEventListener, throwIfAborted } = (value ?? {}) as Partial<AbortSignal>
  if (value === undefined || (typeof addEventListener === 'function' && typeof throwIfAborted === 'function')) return
  throw new InputError('ERR_OPTION_TYPE', `signal is ${show(value)}, expected an AbortSignal`)
}
