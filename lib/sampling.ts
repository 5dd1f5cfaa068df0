/** How the next token is chosen: options of a generation, checked, with the model's defaults filled in. Pure. */
import { inspect } from 'node:util'
import { mostTemperature, type SamplingDefaults } from './config.ts'
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
