// One generation as its user sees it, on the demo model.
import { setImmediate as tick } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import type { Completion, Generation, Piece } from '../../lib/generation.ts'
import { Llama } from '../../lib/llama.ts'
import type { GenerateOptions } from '../../lib/options.ts'

let llama: Llama
/** One sequence at a time, and a short context. */
let narrow: Llama
beforeAll(async () => {
  llama = await Llama.load('demo', { device: 'cpu', threads: 1 })
  narrow = await Llama.load('demo', { device: 'cpu', threads: 1, maxSequences: 1, contextLength: 40 })
})
afterEach(() => {
  for (const { running, waiting, pages } of [llama.stats(), narrow.stats()]) {
    expect({ running, waiting, used: pages.used }).toEqual({ running: 0, waiting: 0, used: 0 })
  }
})
afterAll(() => Promise.all([llama.close(), narrow.close()]))

const text = 'Call me Ishmael. Some years ago'
const greedy = { temperature: 0, ignoreEos: true, maxTokens: 24 }
const collect = async (generation: AsyncIterable<Piece>): Promise<Piece[]> => {
  const pieces: Piece[] = []
  for await (const piece of generation) pieces.push(piece)
  return pieces
}
const joined = (pieces: readonly Piece[]) => ({
  text: pieces.map(piece => piece.text).join(''),
  tokens: pieces.flatMap(piece => piece.tokens),
  logprobs: pieces.flatMap(piece => piece.logprobs),
})
const parts = ({ text, tokens, logprobs }: Completion) => ({ text, tokens, logprobs })
const prompt = () => [llama.config.bos!, ...llama.tokenizer!.encode(text)]

describe('a generation', () => {
  test('by text and by tokens is the same, and says what it used', async () => {
    const byText = await llama.generate(text, greedy)
    expect(byText).toEqual(await llama.generate(prompt(), greedy))
    expect(byText.text).toBe(llama.tokenizer!.decode(byText.tokens))
    expect(byText.tokens.length).toBe(24)
    expect(byText.logprobs.length).toBe(24)
    expect(byText.logprobs.every(value => value <= 0 && value > -20)).toBe(true)
    expect(byText.finishReason).toBe('length')
    const used = prompt().length
    expect(byText.usage).toEqual({ promptTokens: used, completionTokens: 24, totalTokens: used + 24 })
  })

  test('awaited, iterated, by two at once and afterwards: the same pieces', async () => {
    const generation = llama.generate(text, greedy)
    const [first, second, completion] = await Promise.all([collect(generation), collect(generation), generation])
    expect(first.length).toBeGreaterThan(10)
    expect(joined(first)).toEqual(parts(completion))
    expect(second).toEqual(first)
    expect(await collect(generation)).toEqual(first)
    expect(await generation).toBe(completion)
  })

  test('goes on while nobody looks, and the prompt may be changed meanwhile', async () => {
    const tokens = prompt()
    const generation = llama.generate(tokens, greedy)
    tokens.fill(0)
    while (llama.stats().running + llama.stats().waiting > 0) await tick()
    expect(await generation).toEqual(await llama.generate(text, greedy))
  })

  test('leaving for await ends it and frees its pages at once', async () => {
    const generation = llama.generate(text, { ...greedy, maxTokens: 500 })
    let seen = 0
    for await (const _ of generation) if (++seen === 3) break
    expect(llama.stats().pages.used).toBe(0)
    const { finishReason, tokens } = await generation
    expect(finishReason).toBe('abort')
    expect(tokens.length).toBeLessThan(50)
  })

  test('an error thrown inside for await ends it too', async () => {
    const generation = llama.generate(text, { ...greedy, maxTokens: 500 })
    const failing = async () => {
      for await (const _ of generation) throw new Error('mine')
    }
    await expect(failing()).rejects.toThrow('mine')
    expect((await generation).finishReason).toBe('abort')
  })
})

describe('abort', () => {
  /** A step that was under way for an aborted one may have to end first. */
  const running = async () => {
    while (narrow.stats().running === 0) await tick()
  }
  /** Brings a generation of `narrow` into a state; gives out how many tokens it may have. */
  const states: [string, boolean, (generation: Generation) => Promise<void>, (tokens: number) => boolean][] = [
    ['just created', false, async () => {}, n => n === 0],
    [
      'queued behind another',
      true,
      async () => expect(narrow.stats()).toMatchObject({ running: 1, waiting: 1 }) as never,
      n => n === 0,
    ],
    [
      'in prefill',
      false,
      async () => {
        await running()
        expect(narrow.stats()).toMatchObject({ running: 1, waiting: 0 })
      },
      n => n === 0,
    ],
    [
      'decoding',
      false,
      async generation => {
        const pieces = generation[Symbol.asyncIterator]()
        for (let i = 0; i < 3; i++) await pieces.next()
      },
      n => n >= 3 && n < 24,
    ],
    ['finished', false, async generation => void (await generation), n => n === 24],
  ]
  const start = async (behind: boolean, options: GenerateOptions = {}) => {
    const other = behind ? narrow.generate('Another', greedy) : undefined
    if (behind) await running()
    return { other, generation: narrow.generate(text, { ...greedy, ...options }) }
  }

  test.each(states)('%s: by abort()', async (state, behind, reach, holds) => {
    const whole = await narrow.generate(text, greedy)
    const before = narrow.stats().generatedTokens
    const { other, generation } = await start(behind)
    await reach(generation)
    generation.abort()
    expect(narrow.stats().pages.used === 0).toBe(!behind) // at once
    generation.abort()
    const completion = await generation
    expect(completion.finishReason).toBe(state === 'finished' ? 'length' : 'abort')
    expect(holds(completion.tokens.length)).toBe(true)
    expect(completion.tokens).toEqual(whole.tokens.slice(0, completion.tokens.length))
    expect(joined(await collect(generation))).toEqual(parts(completion))
    if (other) expect((await other).finishReason).toBe('length')
    expect(await narrow.generate(text, greedy)).toEqual(whole) // what the aborted one left behind changes nothing
    const given = completion.tokens.length + (other ? 24 : 0) + 24
    expect(narrow.stats().generatedTokens - before).toBe(given) // nothing was made for nobody
  })

  test.each(states)('%s: by a signal', async (state, behind, reach, holds) => {
    const controller = new AbortController()
    const reason = new Error('enough')
    const { other, generation } = await start(behind, { signal: controller.signal })
    await reach(generation)
    controller.abort(reason)
    expect(narrow.stats().pages.used === 0).toBe(!behind)
    const pieces: Piece[] = []
    const looking = async () => {
      for await (const piece of generation) pieces.push(piece)
    }
    if (state === 'finished') {
      expect((await generation).finishReason).toBe('length')
      await looking()
    } else {
      await expect(Promise.resolve(generation)).rejects.toBe(reason)
      const seen: unknown[] = []
      await generation.finally(() => seen.push('ended')).catch(error => seen.push(error))
      expect([seen, await generation.catch(error => error)]).toEqual([['ended', reason], reason])
      await expect(looking()).rejects.toBe(reason)
    }
    expect(holds(joined(pieces).tokens.length)).toBe(true)
    if (other) expect((await other).finishReason).toBe('length')
  })

  test('a signal that was aborted before: nothing starts, and AbortError comes', async () => {
    const before = llama.stats().steps
    const generation = llama.generate(text, { ...greedy, signal: AbortSignal.abort() })
    expect(llama.stats()).toMatchObject({ running: 0, waiting: 0 })
    await expect(Promise.resolve(generation)).rejects.toMatchObject({ name: 'AbortError' })
    await expect(collect(generation)).rejects.toMatchObject({ name: 'AbortError' })
    generation.abort()
    expect(llama.stats().steps).toBe(before)
  })
})

describe('the end', () => {
  test.each([1, 2, 17])('maxTokens %i', async maxTokens => {
    const { tokens, finishReason } = await llama.generate(text, { ...greedy, maxTokens })
    expect([tokens.length, finishReason]).toEqual([maxTokens, 'length'])
  })

  test.each([1, 12, 39])('the end of the context, %i tokens before', async room => {
    const tokens = Array.from({ length: 40 - room }, (_, i) => 100 + i)
    for (const maxTokens of [undefined, room, room + 1, 1e9]) {
      const completion = await narrow.generate(tokens, { ...greedy, maxTokens })
      expect([completion.tokens.length, completion.finishReason]).toEqual([room, 'length'])
    }
  })

  test('a stop token is given out without its text', async () => {
    const whole = await llama.generate(text, greedy)
    const id = whole.tokens[9]!
    const at = whole.tokens.indexOf(id)
    const { tokens, finishReason, ...rest } = await llama.generate(text, { ...greedy, stopTokens: [4095, id] })
    expect(tokens).toEqual(whole.tokens.slice(0, at + 1))
    expect(finishReason).toBe('stop')
    expect(rest.text).toBe(llama.tokenizer!.decode(tokens.slice(0, -1)))
    expect(rest.logprobs).toEqual(whole.logprobs.slice(0, at + 1))
  })

  test('stop strings anywhere in the text, across tokens too, end it and never leak', async () => {
    const options = { ...greedy, maxTokens: 40 }
    const whole = await llama.generate(text, options)
    const anywhere = fc.tuple(fc.nat(whole.text.length - 1), fc.integer({ min: 1, max: 12 }))
    const samples = fc.sample(anywhere, { numRuns: 24, seed: 4 })
    let across = 0
    await Promise.all(
      samples.map(async ([from, length], i) => {
        const stop = whole.text.slice(from, from + length)
        const generation = llama.generate(text, { ...options, stop: i % 2 ? stop : ['\u0000', stop, `${stop}${stop}!`] })
        const expected = whole.text.slice(0, whole.text.indexOf(stop))
        let shown = ''
        for await (const piece of generation) {
          shown += piece.text
          expect(expected.startsWith(shown)).toBe(true)
        }
        const { text: found, tokens, finishReason } = await generation
        expect([shown, found, finishReason]).toEqual([expected, expected, 'stop'])
        expect(tokens).toEqual(whole.tokens.slice(0, tokens.length))
        const last = llama.tokenizer!.decode(tokens.slice(0, -1))
        expect(last.includes(stop)).toBe(false) // not one token too late
        if (last.length > expected.length) across++
      }),
    )
    expect(across).toBeGreaterThan(3)
  })

  test('what looked like the beginning of a stop string comes out at the end', async () => {
    const whole = await llama.generate(text, greedy)
    const stop = [`${whole.text.slice(-5)}\u0000`, `${whole.text.slice(3, 9)}\u0000`]
    expect(await llama.generate(text, { ...greedy, stop })).toEqual(whole)
  })
})

describe('sampling', () => {
  const warm = { temperature: 1, topP: 0.95, ignoreEos: true, maxTokens: 20 }

  test('the same seed gives the same tokens, another one others', async () => {
    const run = (seed: number | bigint | undefined) => llama.generate(text, { ...warm, seed })
    const seven = await run(7)
    expect(await run(7n)).toEqual(seven)
    const others = await Promise.all([8, -7, 7 + 2 ** 32, undefined, undefined].map(run))
    const all = [seven, ...others].map(({ tokens }) => tokens.join())
    expect(new Set(all).size).toBe(6)
  })

  test('alone, and among eight others of other lengths and options: the same bits', async () => {
    const options = { ...warm, seed: 42, topK: 50 }
    const alone = await llama.generate(text, options)
    for (const before of [0, 4, 8]) {
      const other = (i: number) =>
        llama.generate('The sea '.repeat(1 + 5 * i), { ...warm, maxTokens: 3 + 4 * i, temperature: i / 3 })
      const others = Array.from({ length: before }, (_, i) => other(i))
      if (before === 4) for (let i = 0; i < 5; i++) await tick() // it joins those that run
      const generation = llama.generate(text, options)
      others.push(...Array.from({ length: 8 - before }, (_, i) => other(i)))
      expect(await generation).toEqual(alone)
      await Promise.all(others)
    }
  })

  test('logprobs are those of the model itself, whatever the temperature', async () => {
    const first = { ...greedy, maxTokens: 1 }
    const [cold, warmed] = await Promise.all([
      llama.generate(text, first),
      llama.generate(text, { ...first, temperature: 0.01, seed: 1 }),
    ])
    expect(warmed).toEqual(cold)
  })
})

describe('prompts that are refused', () => {
  const range = 'expected a whole number from 0 to 4095'
  const wrong: [string, unknown, string, string][] = [
    ['no token', [], 'ERR_PROMPT_EMPTY', 'expected at least one token'],
    ['no text', '', 'ERR_PROMPT_EMPTY', 'expected text'],
    ['a typed array', new Int32Array(3), 'ERR_PROMPT_TYPE', 'Array.from makes one of a typed array'],
    ['too many tokens', new Array(40).fill(1), 'ERR_PROMPT_TOO_LONG', 'the prompt has 40 tokens, expected at most 39'],
    ['too much text', 'word '.repeat(60), 'ERR_PROMPT_TOO_LONG', 'expected at most 39'],
    ...[-1, 4096, 1.5, Number.NaN, Number.POSITIVE_INFINITY, '5', 5n, null, undefined, {}].map(
      (id): [string, unknown, string, string] => [
        `the id ${id} (${typeof id})`,
        [1, 2, id],
        'ERR_PROMPT_TOKEN',
        `token 2 of the prompt is `,
      ],
    ),
    ['an id out of range', [4096], 'ERR_PROMPT_TOKEN', `token 0 of the prompt is 4096, ${range}`],
    ['a hole', new Array(1), 'ERR_PROMPT_TOKEN', `token 0 of the prompt is undefined, ${range}`],
    ...[undefined, null, 5, {}, new Int32Array(3), new Set([1])].map((value): [string, unknown, string, string] => [
      'another type',
      value,
      'ERR_PROMPT_TYPE',
      'expected text or an array of token ids',
    ]),
  ]
  test.each(wrong)('%s', async (_, value, code, message) => {
    const error = expect.objectContaining({ name: 'InputError', code, message: expect.stringContaining(message) })
    expect(() => narrow.generate(value as string, greedy)).toThrow(error as never)
  })

  test('wrong options start nothing', () => {
    const before = llama.stats()
    expect(() => llama.generate(text, { maxTokens: 0 })).toThrow(expect.objectContaining({ code: 'ERR_OPTION_RANGE' }) as never)
    expect(() => llama.generate(text, { stop: '' })).toThrow(expect.objectContaining({ code: 'ERR_OPTION_STOP' }) as never)
    expect(llama.stats()).toEqual(before)
  })
})
