// The same bits alone or in any batch: one request, the needle, among others in engines of every kind. NEEDLES=1000 for more.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import type { CriaError } from '../lib/errors.ts'
import type { Completion, Generation } from '../lib/generation.ts'
import type { Format } from '../lib/grammar.ts'
import { Llama } from '../lib/llama.ts'
import type { GenerateOptions, LoadOptions } from '../lib/options.ts'
import { Random } from './ops/numbers.ts'

const seed = Number(process.env.SEED ?? 20261125) // of the trials
const trials = Number(process.env.NEEDLES ?? 100)
const vocab = 4096

interface Needle {
  readonly prompt: readonly number[]
  readonly options: GenerateOptions & { readonly seed: number }
}
/** What there is of an answer, or the code of its error. */
type Answered = Partial<Completion> | string

const promptOf = (random: Random, length: number) => Array.from({ length }, () => random.int(0, vocab))

const formats: readonly Format[] = [
  { type: 'regex', pattern: '[a-z]{2,8}( [a-z]{2,8}){2,9}' },
  { type: 'regex', pattern: '(yes|no|[0-9]{1,12})' },
  { type: 'jsonSchema', schema: { properties: { n: { type: 'integer' }, s: { type: 'string' } }, required: ['n', 's'] } },
  { type: 'json' },
]
/** What a request may ask for besides; every needle asks for one of these, and perhaps for others. */
const wishes: readonly ((random: Random, maxTokens: number) => GenerateOptions)[] = [
  () => ({ topK: 20, topP: 0.9 }),
  () => ({ frequencyPenalty: 0.5, repetitionPenalty: 1.2, logitBias: { 7: 1 } }),
  random => ({ format: random.pick(formats), ignoreEos: false }),
  random => ({ topLogprobs: random.int(1, 21), promptLogprobs: true }),
  random => ({ promptLookup: random.int(1, 9) }),
  // The stop token comes as soon as it may.
  (random, maxTokens) => ({ minTokens: random.int(0, maxTokens + 1), stopTokens: [9], logitBias: { 9: 100 } }),
  random => ({ topLogprobs: random.int(1, 21) }),
]

function needleOf(random: Random, longest: number, wish: number): Needle {
  const options = {
    maxTokens: random.int(1, longest),
    ignoreEos: true,
    temperature: random.int(0, 2) ? 0.8 : 0,
    seed: random.int(0, 1000),
  }
  const wished = wishes.filter((_, i) => i === wish || random.int(0, 6) === 0)
  return {
    prompt: promptOf(random, random.int(1, 70)),
    options: Object.assign(options, ...wished.map(one => one(random, options.maxTokens))),
  }
}

/** An engine that differs from the plainest one in everything that must not matter. */
const engineOf = (random: Random): LoadOptions => ({
  pageSize: random.pick([1, 5, 16, 32]),
  maxSequences: random.pick([2, 7, 16, 64]),
  maxBatchTokens: random.pick([64, 65, 100, 256]),
  kvCacheTokens: random.pick([160, 320, 4096]),
  prefixCache: random.int(0, 3) > 0,
  pipeline: random.int(0, 4) > 0,
})

const answered = (generation: Generation): Promise<Answered> =>
  Promise.resolve(generation).catch((error: CriaError) => error.code)

/** Alone, or as one of several answers, of which the first has the log-probabilities of the prompt. */
function answerOf(llama: Llama, { prompt, options }: Needle, at: number): Promise<Answered> {
  if (at === 0) return answered(llama.generate(prompt, options))
  return answered(llama.generateMany(prompt, at + 1, { ...options, seed: options.seed - at })[at]!)
}

/** Others that come before and after it: some begin as the needle does, some are cut short. */
function crowd(llama: Llama, random: Random, needle: Needle, size: number): void {
  for (let i = 0; i < size; i++) {
    const own = promptOf(random, random.int(1, 30))
    const shared = random.int(0, 2) ? [] : needle.prompt.slice(0, random.int(0, needle.prompt.length + 1))
    const prompt = [...shared, ...own].slice(0, 100)
    const wished = needleOf(random, 10, random.int(0, wishes.length)).options
    const options = { ...wished, priority: random.int(-1, 2) }
    const several = random.int(0, 12)
    if (several === 2) llama.logits(prompt).catch(() => {})
    const others =
      several === 0
        ? llama.generateMany(prompt, random.int(1, 5), options)
        : several === 1
          ? llama.chatMany([{ role: 'user', content: `The ${i}` }], random.int(1, 4), options)
          : [llama.generate(prompt, options)]
    for (const other of others) if (random.int(0, 4) === 0) setTimeout(() => other.abort(), random.int(0, 20))
  }
}

for (const [device, count, longest, most] of [
  ['cpu', trials, 20, 64],
  ['simt', Math.ceil((trials * wishes.length) / 50), 9, 3],
] as const) {
  describe(`${count} needles on ${device}`, () => {
    let alone: Llama
    beforeAll(async () => {
      const plain = { pageSize: 16, maxSequences: 1, maxBatchTokens: 512, prefixCache: false, pipeline: false }
      alone = await Llama.load('demo', { device, contextLength: 160, ...plain })
    })
    afterAll(() => alone?.close())

    const batches = Math.ceil(count / 5)
    for (let b = 0; b < batches; b++)
      test(`trials ${5 * b} to ${Math.min(count, 5 * b + 5) - 1} (SEED=${seed})`, async () => {
        const random = new Random(seed + b)
        const options = engineOf(random)
        await using llama = await Llama.load('demo', { device, contextLength: 160, ...options })
        for (let i = 5 * b; i < Math.min(count, 5 * b + 5); i++) {
          const needle = needleOf(random, longest, i % wishes.length)
          const at = random.int(0, 4) ? 0 : random.int(1, 4)
          const { promptLookup: _, promptLogprobs, ...plain } = needle.options
          const expected = await answerOf(alone, { ...needle, options: { ...plain, ...(at === 0 && { promptLogprobs }) } }, 0)
          const others = random.int(0, 4) ? random.int(0, most >> 2) : random.int(0, most)
          crowd(llama, random, needle, others >> 1)
          if (random.int(0, 2)) await new Promise(resolve => setTimeout(resolve, random.int(0, 10)))
          const found = answerOf(llama, needle, at)
          crowd(llama, random, needle, others - (others >> 1))
          const trial = { trial: i, at, options, needle: needle.options }
          expect({ ...trial, answer: await found }).toEqual({ ...trial, answer: expected })
          if (random.int(0, 2)) while (llama.stats().running + llama.stats().waiting > 0) await new Promise(setImmediate)
        }
        expect(llama.stats().steps).toBeGreaterThan(0)
      })
  })
}
