// Several answers to one prompt, log-probabilities, penalties and guesses, through the whole library on the CPU.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { Llama } from '../../lib/llama.ts'

let llama: Llama
beforeAll(async () => {
  llama = await Llama.load('demo', { device: 'cpu', threads: 1 })
})
afterAll(() => llama.close())

const prompt = 'The old house stood at the end of the lane, and'
const greedy = { temperature: 0, ignoreEos: true, maxTokens: 24 }

describe('several answers', () => {
  test('draw with seeds one after the other, and equal what each seed gives alone', async () => {
    const drawn = { temperature: 1, seed: 41, ignoreEos: true, maxTokens: 12 }
    const many = await Promise.all(llama.generateMany(prompt, 4, drawn))
    for (const [i, answer] of many.entries()) expect(answer).toEqual(await llama.generate(prompt, { ...drawn, seed: 41 + i }))
    expect(new Set(many.map(({ text }) => text)).size).toBe(4)
  })
  test('compute the prompt once', async () => {
    const tokens = Array.from({ length: 200 }, (_, i) => (i * 37) % 4000)
    const before = llama.stats()
    await Promise.all(llama.generateMany(tokens, 5, { ...greedy, maxTokens: 2 }))
    expect(llama.stats().pages.used).toBe(0)
    expect(llama.stats().steps - before.steps).toBeLessThan(8)
  })
  test.each([0, 129, 1.5, Number.NaN])('%p of them are refused', count => {
    const error = { code: 'ERR_OPTION_RANGE', message: expect.stringContaining('expected a whole number from 1 to 128') }
    expect(() => llama.generateMany(prompt, count)).toThrow(expect.objectContaining(error) as never)
  })
  test('of more than may wait, too: they could never start', async () => {
    await using small = await Llama.load('demo', { device: 'cpu', threads: 1, maxSequences: 2, maxQueue: 3 })
    const message =
      'the count of answers is 6, more than may run and wait; ask for at most 5 at once, or load with a larger maxQueue'
    const error = { code: 'ERR_OPTION_RANGE', message }
    expect(() => small.generateMany(prompt, 6)).toThrow(expect.objectContaining(error) as never)
    expect(await Promise.all(small.generateMany(prompt, 5, { maxTokens: 1 }))).toHaveLength(5)
  })
})

test('without maxTokens an answer may be as long as the cache can hold', async () => {
  await using small = await Llama.load('demo', { device: 'cpu', threads: 1, kvCacheTokens: 64 })
  const { usage } = await small.generate([1, 2, 3, 4], { ignoreEos: true, temperature: 0 })
  expect(usage).toEqual({ promptTokens: 4, completionTokens: 61, totalTokens: 65 })
  const error = { code: 'ERR_OPTION_KV_CACHE' }
  expect(() => small.generate([1, 2, 3, 4], { maxTokens: 62 })).toThrow(expect.objectContaining(error) as never)
  expect(() => small.generate(Array(70).fill(1))).toThrow(expect.objectContaining(error) as never)
})

test('tokens of an evaluation are those of the call, whatever becomes of the array while it waits', async () => {
  const tokens = [5, 6, 7]
  const expected = await llama.logits(tokens)
  const [found, other] = [llama.logits(tokens), llama.generate(prompt, greedy)]
  tokens.push(...Array(500).fill(1e9))
  expect(await found).toEqual(expected)
  expect((await other).tokens).toHaveLength(24)
})

describe('log-probabilities', () => {
  test('the most probable tokens, of which greedy takes the first', async () => {
    const { tokens, logprobs, topLogprobs } = await llama.generate(prompt, { ...greedy, topLogprobs: 5 })
    for (const [i, top] of topLogprobs.entries()) {
      expect(top).toHaveLength(5)
      expect(top[0]).toEqual({ id: tokens[i], logprob: logprobs[i] })
      for (let k = 1; k < 5; k++) expect(top[k]!.logprob).toBeLessThanOrEqual(top[k - 1]!.logprob)
    }
  })
  test.each([0, 2])('of the prompt: those that logits() gives, with %i of the most probable', async topLogprobs => {
    const tokens = llama.tokenizer!.encode(prompt)
    const { promptLogprobs } = await llama.generate(tokens, { ...greedy, maxTokens: 1, topLogprobs, promptLogprobs: true })
    const logits = await llama.logits(tokens)
    const { vocab } = llama.config
    expect(promptLogprobs!.map(({ id }) => id)).toEqual(tokens.slice(1))
    for (const [i, { id, logprob, top }] of promptLogprobs!.entries()) {
      expect(top).toHaveLength(topLogprobs)
      const row = logits.subarray(i * vocab, (i + 1) * vocab)
      const most = row.reduce((a, b) => Math.max(a, b))
      const sum = row.reduce((all, x) => all + Math.exp(x - most), 0)
      expect(logprob).toBeCloseTo(row[id]! - most - Math.log(sum), 4)
    }
  })
  test('are the raw ones, whatever penalties and biases make of the logits', async () => {
    const plain = await llama.generate(prompt, { ...greedy, maxTokens: 1 })
    const biased = await llama.generate(prompt, { ...greedy, maxTokens: 1, logitBias: { [plain.tokens[0]!]: 5 } })
    expect(biased.tokens).toEqual(plain.tokens)
    expect(biased.logprobs).toEqual(plain.logprobs)
  })
})

describe('rules', () => {
  test('a bias of -100 rules a token out, one of 100 forces it', async () => {
    const { tokens } = await llama.generate(prompt, greedy)
    const without = await llama.generate(prompt, { ...greedy, logitBias: { [tokens[0]!]: -100 } })
    expect(without.tokens).not.toContain(tokens[0])
    const forced = await llama.generate(prompt, { ...greedy, maxTokens: 5, logitBias: new Map([[77, 100]]) })
    expect(forced.tokens).toEqual([77, 77, 77, 77, 77])
  })
  test('a strong penalty: no token comes twice', async () => {
    const { tokens } = await llama.generate([5], { ...greedy, presencePenalty: 2, frequencyPenalty: 2, repetitionPenalty: 10 })
    expect(new Set(tokens).size).toBe(tokens.length)
  })
  test('count the newest token, which the host has not read yet', async () => {
    await using patient = await Llama.load('demo', { device: 'cpu', threads: 1, pipeline: false })
    const options = { ...greedy, maxTokens: 40, frequencyPenalty: 1.5, repetitionPenalty: 1.3 }
    for (const start of [[5], [9, 9], [100, 200, 300]])
      expect(await llama.generate(start, options)).toEqual(await patient.generate(start, options))
  })
  test('minTokens keeps stop tokens and stop strings away', async () => {
    const plain = await llama.generate(prompt, greedy)
    const stopTokens = [plain.tokens[2]!]
    const early = await llama.generate(prompt, { ...greedy, stopTokens })
    expect(early).toMatchObject({ finishReason: 'stop', usage: { completionTokens: 3 } })
    const late = await llama.generate(prompt, { ...greedy, stopTokens, minTokens: 10 })
    expect(late.tokens.slice(0, 10)).not.toContain(stopTokens[0])
    expect(late.usage.completionTokens).toBeGreaterThanOrEqual(10)
    const [first] = plain.text.trim().split(' ')
    const text = await llama.generate(prompt, { ...greedy, stop: first!, minTokens: 10 })
    expect(text.text.startsWith(plain.text.slice(0, 10))).toBe(true)
    for (const minTokens of [5, 9]) {
      const stop = llama.tokenizer!.decode([plain.tokens[minTokens - 1]!]) // the first that may
      const { tokens } = await llama.generate(prompt, { ...greedy, stop, minTokens })
      expect(tokens).toEqual(plain.tokens.slice(0, minTokens))
    }
  })
  test('few biases, many, and many of several at once: the last one of each counts', async () => {
    const forced = async (id: number, others: number) => {
      const logitBias = new Map([...Array.from({ length: others }, (_, i): [number, number] => [i, -1]), [id, 100]])
      expect((await llama.generate(prompt, { ...greedy, maxTokens: 4, logitBias })).tokens).toEqual([id, id, id, id])
    }
    await forced(3000, 0)
    await forced(3001, 1023)
    await Promise.all([3002, 3003, 3004].map(id => forced(id, 1023)))
  })
  test('a thousand biases at once, beside a request without any', async () => {
    const everything = new Map(Array.from({ length: 1024 }, (_, id) => [id, -100]))
    const tokens = Array.from({ length: 60 }, (_, i) => i)
    const other = llama.generate(tokens, greedy)
    const small = llama.generate(tokens, { ...greedy, logitBias: everything, stopTokens: [1, 2, 3], minTokens: 5 })
    expect((await small).tokens.every(id => id >= 1024)).toBe(true)
    expect((await other).tokens).toHaveLength(24)
  })
})

test('guesses from what the text repeats: the same answer in fewer steps', async () => {
  const text = 'one two three four five six seven eight. '.repeat(6)
  const before = llama.stats().steps
  const plain = await llama.generate(text, { ...greedy, maxTokens: 60 })
  const between = llama.stats().steps
  const guessed = await llama.generate(text, { ...greedy, maxTokens: 60, promptLookup: 8 })
  const after = llama.stats().steps
  expect(guessed).toEqual(plain)
  expect(after - between).toBeLessThan(between - before)
  for (let at = 0; at + 16 < plain.text.length; at += 3) {
    const stopped = { ...greedy, maxTokens: 60, stop: plain.text.slice(at, at + 16) } // also among guesses that come true
    expect(await llama.generate(text, { ...stopped, promptLookup: 8 })).toEqual(await llama.generate(text, stopped))
  }
  const drawn = { temperature: 0.9, seed: 5, maxTokens: 40, ignoreEos: true }
  expect(await llama.generate(text, { ...drawn, promptLookup: 4 })).toEqual(await llama.generate(text, drawn))
})

test.each([
  ['penalties', { frequencyPenalty: 1.5 }],
  ['biases', { logitBias: { 300: 4 } }],
  ['minTokens', { minTokens: 20, stopTokens: [260, 285] }],
  ['a format', { format: { type: 'regex', pattern: '( [a-z]{1,9}){9}' }, ignoreEos: false }],
] as const)('guesses know nothing of %s: the same answer without', async (_, rules) => {
  const options = { ...greedy, maxTokens: 30, ...rules }
  const text = 'one two three four five six seven eight. '.repeat(6)
  expect(await llama.generate(text, { ...options, promptLookup: 8 })).toEqual(await llama.generate(text, options))
})

test('a long prompt in chunks does not stall the others', async () => {
  await using small = await Llama.load('demo', { device: 'cpu', threads: 1, maxBatchTokens: 16 })
  let between = 0
  const short = small.generate([1, 2, 3], { ...greedy, maxTokens: 100 })
  for await (const _ of short) if (++between === 5) break
  const talking = small.generate([1, 2, 3], { ...greedy, maxTokens: 100 })
  const long = small.generate(
    Array.from({ length: 150 }, (_, i) => i),
    { ...greedy, maxTokens: 1 },
  )
  let given = 0
  const listen = (async () => {
    for await (const _ of talking) given++
  })()
  await long
  expect(given).toBeGreaterThan(5)
  talking.abort()
  await listen
})

describe('formats', () => {
  const yesOrNo = { type: 'regex', pattern: '(yes|no)' } as const
  test('are kept, beside answers without one', async () => {
    const [answer, plain] = await Promise.all([
      llama.generate(prompt, { maxTokens: 8, format: yesOrNo }),
      llama.generate(prompt, greedy),
    ])
    expect(answer).toMatchObject({ text: expect.stringMatching(/^(yes|no)$/), finishReason: 'stop' })
    expect(plain).toEqual(await llama.generate(prompt, greedy))
  })
  test('wait in the queue while they are compiled', async () => {
    await using small = await Llama.load('demo', { device: 'cpu', threads: 1, maxSequences: 1, maxQueue: 1 })
    const taken = [1, 2].map(() => small.generate(prompt, { maxTokens: 8, format: yesOrNo }))
    for (const options of [{ format: yesOrNo }, {}])
      expect(() => small.generate(prompt, options)).toThrow(expect.objectContaining({ code: 'ERR_BUSY' }) as never)
    for (const answer of taken) expect((await answer).text).toMatch(/^(yes|no)$/)
    expect((await small.generate(prompt, { maxTokens: 8, format: yesOrNo })).text).toMatch(/^(yes|no)$/)
  })
  test('that cannot be: the request fails, typed; aborted while it is compiled: it ends', async () => {
    await expect(llama.generate(prompt, { format: { type: 'regex', pattern: '(' } })).rejects.toMatchObject({
      code: 'ERR_FORMAT_REGEX',
    })
    const early = llama.generate(prompt, { format: yesOrNo })
    early.abort()
    expect(await early).toMatchObject({ finishReason: 'abort', tokens: [] })
  })
  test('of several answers: the first is aborted while its format is compiled, the others do not wait for it', async () => {
    const [first, ...others] = llama.generateMany(prompt, 3, { maxTokens: 8, format: yesOrNo })
    first!.abort()
    for (const answer of await Promise.all(others)) expect(answer.text).toMatch(/^(yes|no)$/)
    expect(await first).toMatchObject({ finishReason: 'abort', tokens: [] })
  })
})
