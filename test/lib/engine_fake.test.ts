// The engine on a device that finds every wrong page, position and order; test/lib/fake_device.ts.
import { getEventListeners } from 'node:events'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, test } from '@jest/globals'
import type { RuleOptions } from '../../lib/edits.ts'
import { Engine, type EngineLimits, type EngineStats } from '../../lib/engine.ts'
import type { SequenceOptions } from '../../lib/sequence.ts'
import { Crowd, empty, guess, prompt, scores, texts, tokens, turn } from './fake_crowd.ts'
import { FakeDevice } from './fake_device.ts'
import {
  ask,
  config,
  continuation,
  fault,
  faults,
  greedy,
  limits,
  model,
  type Request,
  random,
  seeded,
  vocab,
} from './fake_model.ts'

const engineOf = (some: Partial<EngineLimits> = {}, device = new FakeDevice()) =>
  new Engine(device, model, config, { ...limits, ...some })

describe('the same answer', () => {
  const of = random(1)
  const some = texts(12, 40, of)
  const asked = Array.from({ length: 2000 }, (_, i): Request => {
    const sampling = of(2) === 0 ? greedy : seeded(i)
    return { prompt: prompt(of, some, 40), maxTokens: 1 + of(12), sampling }
  })

  interface Case {
    readonly what: string
    readonly limit?: Partial<EngineLimits>
    readonly options?: (request: Request) => SequenceOptions
    /** What has to occur for the case to be one. */
    readonly occurs: readonly (keyof typeof occurrences)[]
  }
  const occurrences = {
    batches: ({ steps, generatedTokens }: EngineStats) => generatedTokens > 1.5 * steps,
    hits: ({ cachedTokens }: EngineStats) => cachedTokens > 4000,
    preemptions: ({ preemptions }: EngineStats) => preemptions > 50,
    copies: (_: EngineStats, { calls }: FakeDevice) => calls.copyPages > 50,
    guesses: ({ steps, generatedTokens }: EngineStats) => generatedTokens > 2 * steps,
    ahead: ({ steps }: EngineStats, { overlaps }: FakeDevice) => overlaps > steps / 2,
    'never ahead': (_: EngineStats, { overlaps }: FakeDevice) => overlaps === 0,
  }

  test.each<Case>([
    { what: 'one at a time', limit: { maxSequences: 1, prefixCache: false }, occurs: [] },
    { what: 'four at a time', occurs: ['batches', 'hits', 'ahead'] },
    { what: '64 at a time', limit: { maxSequences: 64, maxBatchTokens: 128, pages: 1000 }, occurs: ['batches', 'hits'] },
    { what: 'pages of one token', limit: { pageSize: 1, pages: 256 }, occurs: ['batches', 'hits', 'copies'] },
    { what: 'large pages', limit: { pageSize: 16, pages: 32 }, occurs: ['batches', 'hits'] },
    { what: 'prompts token by token', limit: { maxBatchTokens: 4 }, occurs: ['hits'] },
    { what: 'no prefix cache', limit: { prefixCache: false, maxBatchTokens: 64 }, occurs: ['batches'] },
    { what: 'a small cache', limit: { maxSequences: 8, pages: 15 }, occurs: ['hits', 'preemptions'] },
    { what: 'a small cache, no prefixes', limit: { maxSequences: 8, pages: 15, prefixCache: false }, occurs: ['preemptions'] },
    { what: 'not pipelined', limit: { pipeline: false }, occurs: ['batches', 'hits', 'never ahead'] },
    {
      what: 'not pipelined, in a small cache',
      limit: { pipeline: false, maxSequences: 8, pages: 15 },
      occurs: ['hits', 'preemptions', 'never ahead'],
    },
    { what: 'in lockstep', occurs: ['batches', 'hits'], options: () => ({ lockstep: true }) },
    {
      what: 'some in lockstep',
      limit: { maxSequences: 8 },
      occurs: ['batches', 'hits'],
      options: ({ maxTokens }) => ({ lockstep: maxTokens % 2 === 0 }),
    },
    {
      what: 'guesses',
      limit: { maxBatchTokens: 64 },
      occurs: ['guesses', 'hits'],
      options: ({ sampling }) => ({ guess: guess(sampling, of) }),
    },
  ])('$what', async ({ limit, options, occurs }) => {
    const device = new FakeDevice()
    const engine = engineOf(limit, device)
    const answers = await Promise.all(asked.map(one => ask(engine, options ? { ...one, options: options(one) } : one).answer))
    expect(faults(asked, answers)).toEqual([])
    expect(engine.stats).toMatchObject(empty)
    expect(occurs.filter(one => !occurrences[one](engine.stats, device))).toEqual([])
  })
})

test('100,000 requests in little room', async () => {
  for (let seed = 1; seed <= 25; seed++) {
    const crowd = new Crowd(seed, 4 + Math.floor((60 * (seed - 1)) / 24))
    await crowd.ask(4000)
    expect({ limits: crowd.limits, faults: crowd.faults.slice(0, 3) }).toEqual({ limits: crowd.limits, faults: [] })
    expect(crowd.stats).toMatchObject(empty)
    // Priorities are worth 3 * 64 arrivals at most, and up to 24 users ask at once, up to 4 requests each.
    expect(crowd.overtaken).toBeLessThan(3 * 64 + 4 * 24)
  }
}, 120_000)

test('10,000 requests leave nothing behind', async () => {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  const heap = async () => {
    for (let i = 0; i < 3; i++) {
      await turn() // a WeakRef is strong until its turn ends
      gc()
    }
    return process.memoryUsage().heapUsed
  }
  const crowd = new Crowd(8, 30)
  await crowd.ask(3000)
  crowd.sequences.length = 0
  const before = await heap()
  await crowd.ask(13_000)
  const after = await heap()
  expect(crowd.stats).toMatchObject(empty)
  // What a program's buffers were filled for last is known until they are filled again.
  expect(crowd.sequences.length).toBeGreaterThan(9900)
  expect(crowd.sequences.filter(one => one.deref()).length).toBeLessThan(100)
  expect(after - before).toBeLessThan(2 ** 20)
  expect(getEventListeners(crowd.signal, 'abort').length).toBe(0)
}, 120_000)

test('an important request goes first, but keeps nobody waiting for ever', async () => {
  const engine = engineOf({ maxSequences: 2 })
  const of = random(3)
  const request = (priority: number): Request => ({
    prompt: tokens(9, of),
    maxTokens: 4,
    sampling: greedy,
    options: { priority },
  })
  const order: number[] = []
  const asked = async (priority: number) => {
    await ask(engine, request(priority)).answer
    order.push(priority)
  }
  await Promise.all([...Array.from({ length: 40 }, () => asked(0)), asked(1)])
  expect(order.indexOf(1)).toBeLessThan(4)

  let others = 0
  let waits = true
  const user = async () => {
    for (; waits && others < 2000; others++) await asked(8)
  }
  const patient = asked(0).then(() => {
    waits = false
  })
  await Promise.all([patient, user(), user(), user(), user()])
  expect(others).toBeGreaterThan(8 * 64 - 10)
  expect(others).toBeLessThan(8 * 64 + 10)
})

describe('several answers to one prompt', () => {
  test.each([
    ['that fills its pages', 16],
    ['that does not', 18],
  ])('%s: it is computed once, and each continues in pages of its own', async (_, length) => {
    const device = new FakeDevice()
    const engine = engineOf({ prefixCache: false }, device)
    const of = random(length)
    const asked = tokens(length, of)
    const all = Array.from({ length: 4 }, (__, i): Request => ({ prompt: asked, maxTokens: 6 + i, sampling: seeded(i) }))
    const first = ask(engine, all[0]!)
    const others = all.slice(1).map(one => ask(engine, { ...one, options: { leader: first.sequence } }))
    const answers = await Promise.all([first, ...others].map(({ answer }) => answer))
    expect(all.map((one, i) => fault(one, answers[i]!))).toEqual(['', '', '', ''])
    expect(engine.stats).toMatchObject({ ...empty, cachedTokens: 3 * (length - 1) })
    expect(device.calls.copyPages).toBeGreaterThan(0)
  })

  test.each(['stop', 'abort'] as const)('when the first ends early: %s', async how => {
    const engine = engineOf({ prefixCache: false })
    const asked = { prompt: tokens(30, random(1)), maxTokens: 6, sampling: greedy }
    const first = ask(engine, { ...asked, ...(how === 'stop' && { stop: { at: 1, how } }) })
    const others = [1, 2].map(() => ask(engine, { ...asked, options: { leader: first.sequence } }))
    if (how === 'abort') {
      await turn()
      engine.abort(first.sequence)
    }
    expect((await first.answer).end).toBe(how)
    for (const { answer } of others) expect(fault(asked, await answer)).toBe('')
    expect(engine.stats).toMatchObject(empty)
  })
})

describe('what requests ask of the logits', () => {
  const off: RuleOptions = { repetition: 1, frequency: 0, presence: 0, bias: new Map(), minTokens: 0, stopTokens: new Set() }
  const of = random(5)
  const some = texts(5, 20, of)
  const cases: Record<string, (i: number) => Partial<Request>> = {
    nothing: () => ({}),
    penalties: () => ({ rules: { ...off, repetition: 1 + of(3), frequency: of(2), presence: of(2) } }),
    biases: () => ({
      rules: {
        ...off,
        frequency: of(2),
        bias: new Map([
          [of(vocab), -100 + of(200)],
          [some[0]![0]!, 5],
        ]),
      },
    }),
    'fewest tokens': () => ({ rules: { ...off, minTokens: of(5), stopTokens: new Set([1, 2, some[0]![1]!]) } }),
    'the most probable': i => ({ sampling: { ...seeded(i), top: 1 + of(20) } }),
  }

  test('each gets it, in one batch', async () => {
    const engine = engineOf({ maxSequences: 8, maxBatchTokens: 64 })
    const asked = Array.from({ length: 500 }, (_, i): Request => {
      const base = { prompt: prompt(of, some, 20), maxTokens: 1 + of(12), sampling: of(2) === 0 ? greedy : seeded(i) }
      return { ...base, ...Object.values(cases)[of(5)]!(i), options: { lockstep: of(4) === 0, scoresPrompt: of(4) === 0 } }
    })
    const answers = await Promise.all(asked.map(one => ask(engine, one).answer))
    expect(faults(asked, answers)).toEqual([])
  })

  const mask = (generated: readonly number[]) =>
    new Int32Array(vocab / 32).fill(1 + generated.length, 5 + ((generated.at(-1) ?? 0) % 1000))
  /** The same request, with masks that are known when `later` calls. */
  const masked = (engine: Engine, base: Request, later: (known: () => void) => void): Request => {
    const state: { mask: Int32Array | undefined } = { mask: undefined }
    const compute = (generated: readonly number[]) => {
      state.mask = undefined
      later(() => {
        state.mask = mask(generated)
        engine.wake()
      })
    }
    compute([])
    const options = { lockstep: true, ready: () => state.mask !== undefined }
    return { ...base, rules: { ...off, mask: state }, mask, onToken: ids => compute([...ids]), options }
  }

  test('masks of tokens that are known later: it waits for them, and others go on', async () => {
    const engine = engineOf({ maxSequences: 8, maxBatchTokens: 64 })
    const later = (known: () => void) => (of(2) === 0 ? setImmediate(known) : queueMicrotask(known))
    const asked = Array.from({ length: 100 }, (_, i): Request => {
      const base = { prompt: prompt(of, some, 20), maxTokens: 1 + of(8), sampling: seeded(i) }
      return i % 3 === 0 ? base : masked(engine, base, later)
    })
    const answers = await Promise.all(asked.map(one => ask(engine, one).answer))
    expect(faults(asked, answers)).toEqual([])
  })

  test('masks that come soon are waited for, those that come late are not', async () => {
    const base = (i: number) => ({ prompt: tokens(3, of), maxTokens: 50, sampling: seeded(i) })
    let begun = false // with the first mask, so that it has a token while the others go on
    const late = (known: () => void) => {
      if (begun) setTimeout(known, 10)
      else known()
      begun = true
    }
    for (const [later, least, most] of [
      [(known: () => void) => setImmediate(known), 50, 60],
      [late, 90, 1000],
    ] as const) {
      const engine = engineOf({ maxSequences: 8, maxBatchTokens: 64 })
      const asked = [base(0), base(1), masked(engine, base(2), later)]
      const began = performance.now()
      const answers = await Promise.all(
        asked.map(async one => {
          const answer = await ask(engine, one).answer
          return { ...answer, steps: engine.stats.steps, milliseconds: performance.now() - began }
        }),
      )
      expect(faults(asked, answers)).toEqual([])
      for (const { milliseconds } of answers.slice(0, 2)) expect(milliseconds).toBeLessThan(250) // of 50 x 10
      expect(answers[2]!.steps).toBeGreaterThanOrEqual(least)
      expect(answers[2]!.steps).toBeLessThan(most)
    }
  })
})

test('more rows of logits than a step takes are for the next one', async () => {
  const engine = engineOf({ context: 400, maxSequences: 20, maxBatchTokens: 512, pages: 4096 })
  const of = random(6)
  const scored = Array.from(
    { length: 3 },
    (): Request => ({ prompt: tokens(300, of), maxTokens: 2, sampling: greedy, options: { scoresPrompt: true } }),
  )
  const guessing = Array.from({ length: 20 }, (_, i): Request => {
    const sampling = seeded(i)
    const options = { guess: (known: readonly number[]) => continuation({ prompt: known, maxTokens: 16, sampling }).ids }
    return { prompt: tokens(5, of), maxTokens: 60, sampling, options }
  })
  const asked = [...scored, ...guessing]
  const answers = await Promise.all(asked.map(one => ask(engine, one).answer))
  expect(faults(asked, answers)).toEqual([])
})

test('few rows of logits, then more of as many tokens', async () => {
  const engine = engineOf({ maxBatchTokens: 64 })
  const of = random(8)
  const sampling = { ...greedy, top: 2 }
  for (const options of [{ scoresPrompt: false }, { scoresPrompt: true }]) {
    const one: Request = { prompt: tokens(40, of), maxTokens: 2, sampling, options }
    const answer = await ask(engine, one).answer
    expect(fault(one, answer)).toBe('')
    if (options.scoresPrompt) expect(answer.scored).toEqual(scores(one.prompt))
  }
})

test('those who wait for their tokens go together', async () => {
  const engine = engineOf({ maxSequences: 8, pages: 200 })
  const of = random(7)
  const asked = Array.from({ length: 8 }, (): Request => {
    return { prompt: tokens(1 + of(15), of), maxTokens: 40, sampling: greedy, options: { lockstep: true } }
  })
  const answers = await Promise.all(asked.map(one => ask(engine, one).answer))
  expect(faults(asked, answers)).toEqual([])
  expect(engine.stats.steps).toBeLessThan(60)
})

test('after warmUp() nothing is recorded for requests without wishes, however many tokens there are', async () => {
  const device = new FakeDevice({ seed: 3 })
  const engine = new Engine(device, model, config, { ...limits, maxSequences: 13, maxBatchTokens: 50, pages: 400 })
  engine.warmUp()
  const recorded = device.calls.record
  expect(recorded).toBe(7) // of 1, 2, 4, 8, 16, 32, 64 tokens
  const of = random(8)
  for (let i = 0; i < 30; i++) {
    const asked = Array.from({ length: 1 + of(20) }, (): Request => {
      return { prompt: tokens(1 + of(50), of), maxTokens: 1 + of(9), sampling: seeded(i) }
    })
    const answers = await Promise.all(asked.map(one => ask(engine, one).answer))
    expect(faults(asked, answers)).toEqual([])
  }
  expect(device.calls.record).toBe(recorded)
})
