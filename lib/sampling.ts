/** How the next token is chosen: options of a generation, checked, with the model's defaults filled in. Pure. */
import { inspect } from 'node:util'
import { mostTemperature, type SamplingDefaults } from './config.ts'
import type { TokenRules } from './edits.ts'
import { InputError } from './errors.ts'

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the most probable token. Default: generation_config.json, else 0. */
  readonly temperature?: number | undefined
  /** Keep the smallest set of most probable tokens that has this much probability, in (0, 1]. 1 keeps all. */
  readonly topP?: number | undefined
  /** Keep this many of the most probable tokens; 0 keeps all. */
  readonly topK?: number | undefined
  /** Keep tokens at least this many times as probable as the most probable one, in [0, 1]. 0 keeps all. */
  readonly minP?: number | undefined
  /** Divides (above 0) or multiplies (below) the logits of tokens that prompt or answer have already; 1 is off. */
  readonly repetitionPenalty?: number | undefined
  /** Is taken off the logit of a token for every time that the answer has it already, from -2 to 2; 0 is off. */
  readonly frequencyPenalty?: number | undefined
  /** Is taken off the logit of a token that the answer has already, from -2 to 2; 0 is off. */
  readonly presencePenalty?: number | undefined
  /** Is added to the logits of tokens, by their ids: from -100, which rules a token out, to 100. At most 1024 of them. */
  readonly logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number> | undefined
  /** The same seed, prompt and options give the same tokens, alone or among others. A whole number of at most 64 bits; default: random. */
  readonly seed?: number | bigint | undefined
}

/** Everything the device needs for one sequence. */
export interface SamplingParameters {
  readonly temperature: number
  readonly topP: number
  readonly topK: number
  readonly minP: number
  /** 64 bits, low word first. */
  readonly seed: readonly [number, number]
  /** What changes the logits first; the rules of one sequence. */
  readonly rules?: TokenRules | undefined
  /** How many of the most probable tokens are asked for, with their log-probabilities. */
  readonly top?: number | undefined
}

/** @throws InputError ERR_OPTION_RANGE naming the option, what was given and what is possible */
export function samplingParameters(options: SamplingOptions, defaults: SamplingDefaults): SamplingParameters {
  const temperature = options.temperature ?? defaults.temperature
  // Truncation of the model's defaults belongs to its temperature: greedy needs none.
  const topP = options.topP ?? defaults.topP ?? 1
  const topK = options.topK ?? defaults.topK ?? 0
  const minP = options.minP ?? defaults.minP ?? 0
  check('temperature', temperature, x => x >= 0 && x <= mostTemperature, `a number from 0 (greedy) to ${mostTemperature}`)
  check('topP', topP, x => x > 0 && x <= 1, 'a number above 0 and at most 1')
  check('topK', topK, x => Number.isInteger(x) && x >= 0 && x < 2 ** 31, 'a whole number, 0 for no limit')
  check('minP', minP, x => x >= 0 && x <= 1, 'a number from 0 to 1')
  return { temperature, topP, topK, minP, seed: seedWords(options.seed) }
}

/** Penalties and biases, checked. */
export interface LogitRules {
  readonly repetition: number
  readonly frequency: number
  readonly presence: number
  readonly bias: ReadonlyMap<number, number>
}

const mostBiases = 1024

/** @throws InputError ERR_OPTION_RANGE, ERR_OPTION_TYPE */
export function logitRules(options: SamplingOptions, vocab: number): LogitRules {
  const { repetitionPenalty = 1, frequencyPenalty = 0, presencePenalty = 0, logitBias = {} } = options
  check('repetitionPenalty', repetitionPenalty, x => x > 0 && x <= 10, 'a number above 0 and at most 10')
  check('frequencyPenalty', frequencyPenalty, x => x >= -2 && x <= 2, 'a number from -2 to 2')
  check('presencePenalty', presencePenalty, x => x >= -2 && x <= 2, 'a number from -2 to 2')
  if (typeof logitBias !== 'object' || logitBias === null || Array.isArray(logitBias)) {
    const expected = 'an object or a Map of token ids and numbers'
    throw new InputError('ERR_OPTION_TYPE', `logitBias is ${show(logitBias)}, expected ${expected}`)
  }
  const entries = logitBias instanceof Map ? [...logitBias] : Object.entries(logitBias)
  if (entries.length > mostBiases) {
    throw new InputError('ERR_OPTION_RANGE', `logitBias has ${entries.length} tokens, expected at most ${mostBiases}`)
  }
  const bias = new Map<number, number>()
  for (const [key, value] of entries) {
    const id = Number(key)
    if (!(Number.isInteger(id) && id >= 0 && id < vocab)) {
      const expected = `a token id from 0 to ${vocab - 1}`
      throw new InputError('ERR_OPTION_RANGE', `logitBias has the token ${show(key)}, expected ${expected}`)
    }
    check(`logitBias of token ${id}`, value, x => x >= -100 && x <= 100, 'a number from -100 to 100')
    bias.set(id, value <= -100 ? Number.NEGATIVE_INFINITY : value)
  }
  return { repetition: repetitionPenalty, frequency: frequencyPenalty, presence: presencePenalty, bias }
}

function seedWords(seed: number | bigint | undefined): readonly [number, number] {
  if (seed === undefined) {
    const words = crypto.getRandomValues(new Uint32Array(2))
    return [words[0]!, words[1]!]
  }
  if (typeof seed !== 'bigint') check('seed', seed, Number.isSafeInteger, 'a whole number below 2^53, or a bigint')
  else if (!isSeed(seed)) throw new InputError('ERR_OPTION_RANGE', `seed is ${show(seed)}, expected at most 64 bits`)
  const bits = BigInt.asUintN(64, BigInt(seed))
  return [Number(bits & 0xffffffffn), Number(bits >> 32n)]
}

/** Whether it has at most 64 bits, with or without a sign. */
export function isSeed(seed: bigint): boolean {
  return BigInt.asUintN(64, seed) === seed || BigInt.asIntN(64, seed) === seed
}

function check(name: string, value: unknown, holds: (value: number) => boolean, expected: string): void {
  if (typeof value === 'number' && holds(value)) return
  throw new InputError('ERR_OPTION_RANGE', `${name} is ${show(value)}, expected ${expected}`)
}

/** A value for a message, whatever it is. */
export function show(value: unknown): string {
  return inspect(value, { breakLength: Number.POSITIVE_INFINITY, customInspect: false }).slice(0, 100)
}
