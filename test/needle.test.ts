// The same bits alone or in any batch: one request, the needle, among others in engines of every kind. NEEDLES=1000 for more.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { Llama } from '../lib/llama.ts'
import type { GenerateOptions, LoadOptions } from '../lib/options.ts'
import { Random } from './ops/numbers.ts'

const seed = Number(process.env.SEED ?? 20261125) // of the trials
const trials = Number(process.env.NEEDLES ?? 100)
const vocab = 4096

interface Needle {
  readonly prompt: readonly number[]
  readonly options: GenerateOptions
}
interface Answered {
  readonly tokens: readonly number[]
  readonly logprobs: readonly number[]
}

const promptOf = (random: Random, length: number) => Array.from({ length }, () => random.int(0, vocab))

function needleOf(random: Random): Needle {
  const drawn = random.int(0, 2) === 0
  const options = {
    maxTokens: random.int(1, 20),
    ignoreEos: true,
    temperature: drawn ? 0.8 : 0,
    seed: random.int(0, 1000),
    ...(random.int(0, 4) === 0 && { topK: 20, topP: 0.9 }),
    ...(random.int(0, 4) === 0 && { frequencyPenalty: 0.5, repetitionPenalty: 1.2, logitBias: { 7: 1 } }),
    ...(random.int(0, 4) === 0 && { promptLookup: 4 }),
  }
  return { prompt: promptOf(random, random.int(1, 70)), options }
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

async function answerOf(llama: Llama, { prompt, options }: Needle): Promise<Answered> {
  const { tokens, logprobs } = await llama.generate(prompt, options)
  return { tokens, logprobs }
}

/** Others that come before and after it: some begin as the needle does, some are cut short. */
function crowd(llama: Llama, random: Random, needle: Needle, size: number): void {
  for (let i = 0; i < size; i++) {
    const own = promptOf(random, random.int(1, 30))
    const prompt = random.int(0, 2) ? own : [...needle.prompt.slice(0, random.int(0, needle.prompt.length + 1)), ...own]
    const options = { ...needleOf(random).options, maxTokens: random.int(1, 10), priority: random.int(-1, 2) }
    const generation = llama.generate(prompt.slice(0, 100), options)
    if (random.int(0, 4) === 0) setTimeout(() => generation.abort(), random.int(0, 20))
  }
}

for (const [device, count, most] of [
  ['cpu', trials, 64],
  ['simt', Math.ceil(trials / 33), 3],
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
          const needle = needleOf(random)
          const { promptLookup: _, ...plain } = needle.options
          const expected = await answerOf(alone, { ...needle, options: plain })
          const others = random.int(0, 4) ? random.int(0, most >> 2) : random.int(0, most)
          crowd(llama, random, needle, others >> 1)
          if (random.int(0, 2)) await new Promise(resolve => setTimeout(resolve, random.int(0, 10)))
          const found = answerOf(llama, needle)
          crowd(llama, random, needle, others - (others >> 1))
          expect({ trial: i, options, ...(await found) }).toEqual({ trial: i, options, ...expected })
          if (random.int(0, 2)) while (llama.stats().running + llama.stats().waiting > 0) await new Promise(setImmediate)
        }
        expect(llama.stats().steps).toBeGreaterThan(0)
      })
  })
}
