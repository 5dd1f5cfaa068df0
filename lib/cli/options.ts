/** The options that commands share, checked before anything is loaded. */
import { readFileSync } from 'node:fs'
import { type Command, InvalidArgumentError } from 'commander'
import { mostTemperature } from '../config.ts'
import type { Format } from '../grammar.ts'
import type { GenerateOptions } from '../options.ts'
import { isSeed } from '../sampling.ts'
import { mostGuesses } from '../scheduler.ts'

export interface LoadFlags {
  readonly device?: string
  readonly threads?: number
  readonly context?: number
}

export interface SamplingFlags {
  readonly maxTokens?: number
  readonly temperature?: number
  readonly topP?: number
  readonly topK?: number
  readonly minP?: number
  readonly minTokens?: number
  readonly repetitionPenalty?: number
  readonly frequencyPenalty?: number
  readonly presencePenalty?: number
  readonly promptLookup?: number
  readonly format?: Format
  readonly seed?: bigint
  readonly stop?: readonly string[]
}

export function loadOptions(command: Command): Command {
  return command
    .option('--device <name>', "'auto' (the first GPU, else the CPU), 'cpu' or 'cuda:N' (default: auto)")
    .option('--threads <n>', 'CPU threads (default: as many as the process may use)', whole(1, 1024))
    .option('--context <n>', "longest sequence in tokens; less takes less memory (default: the model's)", whole(1))
}

export function samplingOptions(command: Command): Command {
  return command
    .option('--max-tokens <n>', 'most tokens to generate (default: to the end of the context)', whole(1))
    .option('--temperature <t>', "0 takes the most probable token (default: the model's)", real(0, mostTemperature))
    .option('--top-p <p>', 'keep the most probable tokens with this probability together, up to 1', topP)
    .option('--top-k <k>', 'keep this many of the most probable tokens, 0 for all', whole(0, 2 ** 31 - 1))
    .option('--min-p <p>', 'keep tokens this many times as probable as the first, 0 to 1', real(0, 1))
    .option('--repetition-penalty <p>', 'divide logits of tokens seen already, 1 for off', repetition)
    .option('--frequency-penalty <p>', 'take off the logit of a token each time it came, -2 to 2', real(-2, 2))
    .option('--presence-penalty <p>', 'take off the logit of a token that came, -2 to 2', real(-2, 2))
    .option('--format <what>', 'what the text must be: json, schema:FILE, regex:PATTERN or grammar:FILE', format)
    .option('--min-tokens <n>', 'do not end before so many tokens', whole(0))
    .option('--prompt-lookup <n>', 'guess up to n tokens from what the text repeats; the same text', whole(0, mostGuesses))
    .option('--seed <n>', 'the same seed gives the same text (default: random)', seed)
    .option('--stop <text>', 'end before this text; may be given up to 16 times', collect)
}

/** Options as the library wants them. */
export function generateOptions(flags: SamplingFlags): GenerateOptions {
  const { maxTokens, minTokens, temperature, topP, topK, minP, seed, stop, format, promptLookup } = flags
  const { repetitionPenalty, frequencyPenalty, presencePenalty } = flags
  const penalties = { repetitionPenalty, frequencyPenalty, presencePenalty }
  return { maxTokens, minTokens, temperature, topP, topK, minP, seed, stop, format, promptLookup, ...penalties }
}

/** A parser of whole numbers from least to most. */
export function whole(least: number, most = Number.MAX_SAFE_INTEGER): (text: string) => number {
  const range = most === Number.MAX_SAFE_INTEGER ? `from ${least} on` : `from ${least} to ${most}`
  return text => parsed(text, value => Number.isInteger(value) && value >= least && value <= most, `a whole number ${range}`)
}

function real(least: number, most: number): (text: string) => number {
  return text => parsed(text, value => value >= least && value <= most, `a number from ${least} to ${most}`)
}

const repetition = (text: string) => parsed(text, value => value > 0 && value <= 10, 'a number above 0 and at most 10')
const topP = (text: string) => parsed(text, value => value > 0 && value <= 1, 'a number above 0 and at most 1')

function parsed(text: string, valid: (value: number) => boolean, expected: string): number {
  const value = text.trim() === '' ? Number.NaN : Number(text)
  if (valid(value)) return value
  throw new InvalidArgumentError(`Expected ${expected}.`)
}

export function seed(text: string): bigint {
  if (/^-?\d+$/.test(text) && isSeed(BigInt(text))) return BigInt(text)
  throw new InvalidArgumentError('Expected a whole number of at most 64 bits.')
}

function format(text: string): Format {
  const [type, ...parts] = text.split(':')
  const rest = parts.join(':')
  if (text === 'json') return { type: 'json' }
  if (type === 'regex' && rest) return { type, pattern: rest }
  if (type === 'schema' && rest) return { type: 'jsonSchema', schema: read(rest) }
  if (type === 'grammar' && rest) return { type, grammar: read(rest) }
  throw new InvalidArgumentError('Expected json, schema:FILE, regex:PATTERN or grammar:FILE.')
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    throw new InvalidArgumentError(`${(error as Error).message}.`)
  }
}

function collect(text: string, before: readonly string[] = []): readonly string[] {
  if (before.length === 16 || text.length > 1024) throw new InvalidArgumentError('Expected at most 16 of 1024 characters.')
  return [...before, text]
}
