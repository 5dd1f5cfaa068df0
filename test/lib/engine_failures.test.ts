// What callers hear when a device fails at any moment, and what is left of the engine then; test/lib/fake_device.ts.
import { describe, expect, test } from '@jest/globals'
import type { RuleOptions } from '../../lib/edits.ts'
import { Engine, type EngineLimits } from '../../lib/engine.ts'
import { errorFor } from '../../lib/errors.ts'
import type { Sequence } from '../../lib/sequence.ts'
import { empty, turn } from './fake_crowd.ts'
import { type Call, FakeDevice, type FakeOptions, type Fault } from './fake_device.ts'
import {
  type Answer,
  adjusted,
  ask,
  config,
  continuation,
  fault,
  greedy,
  limits,
  model,
  Reference,
  type Request,
  random,
  seeded,
  vocab,
} from './fake_model.ts'

const engineOf = (some: Partial<EngineLimits> = {}, options: FakeOptions = {}) =>
  new Engine(new FakeDevice(options), model, config, { ...limits, ...some })
const of = random(9)
const tokens = (count: number) => Array.from({ length: count }, () => of(vocab))

/** The value, or 'hangs'. */
async function soon<T>(promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const hangs = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('hangs')), 2000)
  })
  return Promise.race([promise, hangs]).finally(() => clearTimeout(timer))
}

/** Looks after every microtask; for devices of the same turn. */
async function until(reached: () => boolean): Promise<void> {
  for (let i = 0; !reached(); i++) {
    if (i > 1000) throw new Error('never comes')
    await null
  }
}

describe('any call may fail', () => {
  const cached = tokens(16)
  const warm: Request = { prompt: cached, maxTokens: 2, sampling: greedy }
  const requests: Request[] = [
    { prompt: tokens(40), maxTokens: 4, sampling: seeded(1) },
    { prompt: cached, maxTokens: 5, sampling: greedy },
    { prompt: cached, maxTokens: 3, sampling: seeded(2) },
  ]
  const evaluated = tokens(9)

  /** '' if it was right, or heard of this error. */
  async function outcome(engine: Engine, request: Request, error?: Error): Promise<string> {
    const answer = await soon(ask(engine, request).answer.catch((thrown: Error): Partial<Answer> => ({ error: thrown })))
    return error && answer.error === error ? '' : fault(request, answer as Answer)
  }

  async function evaluation(engine: Engine, error?: Error): Promise<string> {
    const reference = new Reference()
    const expected = `${evaluated.map(token => Math.fround(reference.push(token)))}`
    const found = await soon(engine.evaluate(evaluated).then(String, (thrown: Error) => thrown))
    return found === expected || (error && found === error) ? '' : `evaluation: ${found}, expected ${expected}`
  }

  /** What was wrong, how often the device was called until then, and whether the engine goes on after it. */
  async function scenario(device: FakeDevice, error?: Error) {
    let engine: Engine
    try {
      engine = new Engine(device, model, config, limits)
    } catch (thrown) {
      if (thrown !== error) throw thrown
      return { wrong: [], calls: { ...device.calls } }
    }
    const outcomes = [await outcome(engine, warm, error)]
    outcomes.push(...(await Promise.all([...requests.map(one => outcome(engine, one, error)), evaluation(engine, error)])))
    outcomes.push(await outcome(engine, warm, error))
    const calls = { ...device.calls }
    const goesOn = (await outcome(engine, requests[0]!)) === ''
    if (!goesOn) {
      await expect(ask(engine, warm).answer).rejects.toBe(error)
      await expect(engine.evaluate(evaluated)).rejects.toBe(error)
    }
    expect(engine.stats).toMatchObject(empty)
    return { wrong: outcomes.filter(Boolean), calls, goesOn }
  }

  const modes: [Call, Fault['how']][] = [
    ['tensor', 'throw'],
    ['record', 'throw'],
    ['run', 'throw'],
    ['write', 'throw'],
    ['read', 'throw'],
    ['copyPages', 'throw'],
    ['run', 'later'],
    ['write', 'later'],
    ['read', 'later'],
    ['copyPages', 'later'],
  ]
  test.each(modes)('each %s: %s', async (call, how) => {
    const { calls, ...sound } = await scenario(new FakeDevice())
    expect(sound).toEqual({ wrong: [], goesOn: true })
    expect(calls[call]).toBeGreaterThan(0)
    // What was not enqueued is missed by those who were in it; after what was, nothing is known of the device.
    const lives = how === 'throw' && call !== 'read'
    let died = 0
    for (let at = 1; at <= calls[call]; at++) {
      const error = errorFor('ERR_DEVICE_FAILED', `${call} ${at} fails`)
      const { wrong, goesOn } = await scenario(
        new FakeDevice({ fault: (one, n) => (one === call && n === at ? { how, error } : undefined) }),
        error,
      )
      expect({ at, wrong }).toEqual({ at, wrong: [] })
      if (lives) expect({ at, goesOn }).not.toEqual({ at, goesOn: false })
      if (goesOn === false) died++
    }
    if (!lives) expect(died).toBeGreaterThan(0)
    if (how === 'later') expect(died).toBe(calls[call])
  })
})

test('now and then a call fails: others go on', async () => {
  const error = errorFor('ERR_OUT_OF_MEMORY', 'now and then')
  const fails = random(2)
  const engine = engineOf(
    { pages: 24 },
    { fault: (call, n) => (call !== 'read' && n > 20 && fails(400) === 0 ? { how: 'throw', error } : undefined) },
  )
  const texts = [tokens(20), tokens(20), tokens(20)]
  const ways = [greedy, seeded(1), seeded(2)]
  const asked = Array.from(
    { length: 3000 },
    (_, i): Request => ({ prompt: texts[i % 3]!.slice(0, 4 + of(16)), maxTokens: 1 + of(8), sampling: ways[of(3)]! }),
  )
  const answers = await soon(Promise.all(asked.map(one => ask(engine, one).answer)))
  const wrong = asked.map((one, i) => (answers[i]!.error === error ? 'failed' : fault(one, answers[i]!))).filter(Boolean)
  expect(wrong.filter(one => one !== 'failed')).toEqual([])
  expect(wrong.length).toBeGreaterThan(50)
  expect(wrong.length).toBeLessThan(1000)
  expect(engine.stats).toMatchObject(empty)
})

describe('logits that are not finite', () => {
  const asked: Request[] = [1, 2, 3].map(seed => ({ prompt: tokens(12), maxTokens: 6, sampling: seeded(seed) }))
  const bad = asked[1]!
  /** Of the row that the token after so many generated ones is drawn from. */
  function hashOf({ prompt, ...rest }: Request, generated: number): number {
    const reference = new Reference()
    const { ids } = continuation({ prompt, ...rest, maxTokens: generated })
    return [...prompt, ...ids].map(token => reference.push(token)).at(-1)!
  }

  test.each([
    ['the first token', 0, {}],
    ['a later one', 3, {}],
    ['the last one', 5, {}],
    ['one after guesses that came true', 3, { guess: (known: readonly number[]) => continuation({ ...bad, prompt: known }).ids }],
    ['one after a guess', 1, { guess: (known: readonly number[]) => continuation({ ...bad, prompt: known }).ids }],
  ])('%s: that request fails alone', async (_, generated, options) => {
    const engine = engineOf({ maxBatchTokens: 64 }, { notFinite: new Set([hashOf(bad, generated)]) })
    const all = [...asked, { ...asked[0]!, maxTokens: 9 }]
    const answers = await soon(Promise.all(all.map(one => ask(engine, one === bad ? { ...one, options } : one).answer)))
    const [first, failed, ...others] = answers
    expect([first!, ...others].map((answer, i) => fault([asked[0]!, asked[2]!, all[3]!][i]!, answer))).toEqual(['', '', ''])
    expect(failed).toMatchObject({ ids: continuation({ ...bad, maxTokens: generated }).ids, error: { code: 'ERR_NOT_FINITE' } })
    expect(engine.stats).toMatchObject(empty)
  })

  test.each([64, 3])('a row of a prompt that is scored, %d tokens at once', async maxBatchTokens => {
    const reference = new Reference()
    const hash = bad.prompt.map(token => reference.push(token))[4]!
    const engine = engineOf({ maxBatchTokens, maxSequences: 3 }, { notFinite: new Set([hash]) })
    const scored = { ...bad, options: { scoresPrompt: true } }
    const [failed, right] = await soon(Promise.all([scored, bad].map(one => ask(engine, one).answer)))
    expect(failed).toMatchObject({
      ids: [],
      error: { code: 'ERR_NOT_FINITE', message: expect.stringContaining('after 5 tokens') },
    })
    expect(fault(bad, right!)).toBe('')
  })

  test('a row that nobody draws from may be', async () => {
    const request = {
      ...bad,
      options: { guess: (known: readonly number[]) => [continuation({ ...bad, prompt: known }).ids[0]! ^ 1] },
    }
    const reference = new Reference()
    const rows = [...bad.prompt, continuation(bad).ids[0]!, continuation(bad).ids[1]! ^ 1].map(token => reference.push(token))
    const engine = engineOf({}, { notFinite: new Set([rows.at(-1)!, rows[3]!]) })
    expect(fault(bad, await ask(engine, request).answer)).toBe('')
  })

  test('rules that leave no token are another error', async () => {
    const rules: RuleOptions = {
      repetition: 1,
      frequency: 0,
      presence: 0,
      bias: new Map([[3, 1]]),
      minTokens: 0,
      stopTokens: new Set(),
    }
    const edited = adjusted(hashOf(bad, 0), new Map([[3, [1, -1]]]), [1, 0, 0])
    const engine = engineOf({}, { notFinite: new Set([edited]) })
    const [failed, right] = await soon(Promise.all([{ ...bad, rules }, bad].map(one => ask(engine, one).answer)))
    expect(failed).toMatchObject({ ids: [], error: { code: 'ERR_NO_TOKEN' } })
    expect(fault(bad, right!)).toBe('')
  })
})

describe('admission', () => {
  test('an evaluation waits for those before it to start, not to end', async () => {
    const engine = engineOf({ maxSequences: 8, pages: 200 })
    const order: string[] = []
    const ended = (what: string) => () => order.push(what)
    const all = [ask(engine, plain(5, 40)).answer.then(ended('long')), engine.evaluate(tokens(9)).then(ended('evaluation'))]
    for (let i = 0; i < 3; i++) all.push(ask(engine, plain(5, 2)).answer.then(ended('short')))
    await soon(Promise.all(all))
    expect(order.at(-1)).toBe('long')
  })

  const plain = (length: number, maxTokens: number): Request => ({ prompt: tokens(length), maxTokens, sampling: greedy })

  test('a full queue refuses, and takes requests again when it is not full', async () => {
    const engine = engineOf({ maxSequences: 1, maxQueue: 3 }, { sameTurn: true })
    const taken = [plain(5, 9), plain(5, 2), plain(5, 2), plain(5, 2)].map(one => ({ one, ...ask(engine, one) }))
    await expect(ask(engine, plain(5, 1)).answer).rejects.toMatchObject({ code: 'ERR_BUSY', name: 'BusyError' })
    await until(() => engine.stats.running > 0)
    await expect(ask(engine, plain(5, 1)).answer).rejects.toMatchObject({ code: 'ERR_BUSY' })
    expect(engine.stats).toMatchObject({ running: 1, waiting: 3, promptTokens: 20 })
    await taken[0]!.answer
    const one = plain(5, 2)
    taken.push({ one, ...ask(engine, one) })
    for (const { one, answer } of taken) expect(fault(one, await answer)).toBe('')
  })

  test('as many evaluations may wait', async () => {
    const engine = engineOf({ pages: 10, maxQueue: 2 })
    const text = tokens(36)
    const taken = [1, 2, 3].map(() => engine.evaluate(text))
    await expect(engine.evaluate(text)).rejects.toMatchObject({ code: 'ERR_BUSY' })
    const answers = await soon(Promise.all(taken))
    expect(answers.map(answer => answer.length)).toEqual([36, 36, 36])
    expect((await soon(engine.evaluate(text))).length).toBe(36)
  })

  test('what can never fit is refused at once; what just fits is not', async () => {
    const engine = engineOf({ pages: 5 })
    for (const [length, most] of [
      [21, 1],
      [20, 2],
      [1, 21],
    ] as const) {
      await expect(ask(engine, plain(length, most)).answer).rejects.toMatchObject({
        code: 'ERR_OPTION_KV_CACHE',
        name: 'InputError',
      })
    }
    await expect(engine.evaluate(tokens(21))).rejects.toMatchObject({ code: 'ERR_OPTION_KV_CACHE' })
    expect(engine.stats).toMatchObject({ ...empty, promptTokens: 0 })
    const fit = [plain(20, 1), plain(1, 20), plain(10, 11)]
    const answers = await soon(Promise.all(fit.map(one => ask(engine, one).answer)))
    expect(fit.map((one, i) => fault(one, answers[i]!))).toEqual(['', '', ''])
  })

  const evaluates = async (engine: Engine, length: number) => {
    expect((await engine.evaluate(tokens(length))).length).toBe(length)
  }
  const generates = async (engine: Engine, request: Request) => {
    expect(fault(request, await ask(engine, request).answer)).toBe('')
  }
  test.each<[string, (engine: Engine) => Promise<void>, (engine: Engine) => Promise<void>]>([
    ['evaluations, a request', engine => evaluates(engine, 150), engine => generates(engine, plain(100, 3))],
    ['requests, an evaluation', engine => generates(engine, plain(4, 2 + of(11))), engine => evaluates(engine, 150)],
    [
      'small requests, a large one',
      engine => generates(engine, plain(4, 2 + of(11))),
      engine => generates(engine, plain(150, 3)),
    ],
  ])('%s: those who come later do not keep it waiting', async (_, others, one) => {
    const engine = engineOf({ pages: 10, pageSize: 16, context: 256 })
    let waits = true
    let count = 0
    const user = async () => {
      for (; waits && count < 300; count++) await others(engine)
    }
    const users = Array.from({ length: 8 }, user)
    await until(() => engine.stats.pages.used > 0)
    await soon(one(engine))
    waits = false
    await soon(Promise.all(users))
    expect(count).toBeLessThan(30)
  })
})

describe('abort', () => {
  const request: Request = { prompt: tokens(30), maxTokens: 12, sampling: greedy }
  type State = (one: Sequence) => boolean
  const states: [string, State, Partial<EngineLimits>][] = [
    ['that has just come', () => true, {}],
    ['that waits for its turn', ({ pages }) => pages.length === 0, { maxSequences: 1 }],
    ['in the middle of its prompt', ({ computed }) => computed > 0 && computed < 30, {}],
    ['with a token on its way', ({ ahead, generated }) => ahead > 0 && generated === 0, {}],
    ['that generates', ({ generated }) => generated > 3, {}],
    ['that has lost its pages', ({ epoch, pages }) => epoch > 0 && pages.length === 0, { pages: 14, prefixCache: false }],
    ['that starts again', ({ epoch, pages }) => epoch > 0 && pages.length > 0, { pages: 14, prefixCache: false }],
    ['whose last token is on its way', ({ ahead, generated }) => generated + ahead === 12, {}],
  ]
  test.each(states)('of a request %s', async (_, reached, limit) => {
    const engine = engineOf(limit, { sameTurn: true })
    const other: Request = { prompt: tokens(10), maxTokens: 30, sampling: seeded(1) }
    const first = ask(engine, other)
    const { sequence, answer, soFar } = ask(engine, request)
    await until(() => reached(sequence))
    engine.abort(sequence)
    expect(soFar.end).toBe('abort')
    expect(engine.stats.pages.used).toBe(new Set(first.sequence.pages).size)
    engine.abort(sequence)
    expect(fault(request, await answer, true)).toBe('')
    expect(fault(other, await soon(first.answer))).toBe('')
    expect(engine.stats).toMatchObject(empty)
    expect(fault(request, await soon(ask(engine, request).answer))).toBe('')
  })

  test('of an evaluation that waits for pages: others go on', async () => {
    const engine = engineOf({ pages: 11 }, { sameTurn: true })
    const first = ask(engine, request)
    await until(() => engine.stats.running > 0)
    const controller = new AbortController()
    const evaluation = engine.evaluate(tokens(36), controller.signal)
    const second = ask(engine, request)
    controller.abort(new Error('enough'))
    await expect(evaluation).rejects.toThrow('enough')
    expect(fault(request, await soon(first.answer))).toBe('')
    expect(fault(request, await soon(second.answer))).toBe('')
    expect(engine.stats).toMatchObject(empty)
  })
})

test('closed at any moment: everybody hears of it, once', async () => {
  for (let moment = 0; moment < 60; moment++) {
    const device = new FakeDevice({ seed: moment })
    const engine = new Engine(device, model, config, { ...limits, pages: 16 })
    const asked = [40, 20, 30].map((length): Request => ({ prompt: tokens(length), maxTokens: 6, sampling: greedy }))
    const answers = asked.map(one => ask(engine, one).answer)
    const evaluations = [1, 2].map(() => engine.evaluate(tokens(40)).catch((error: unknown) => error))
    for (let i = 0; i < moment; i++) await (i % 32 === 31 ? turn() : null)
    engine.close()
    device[Symbol.dispose]()
    for (const [i, answer] of (await soon(Promise.all(answers))).entries()) {
      if (answer.error) expect(answer.error).toMatchObject({ code: 'ERR_CLOSED' })
      else expect(fault(asked[i]!, answer)).toBe('')
    }
    for (const evaluated of await soon(Promise.all(evaluations))) {
      if (!(evaluated instanceof Float32Array)) expect(evaluated).toMatchObject({ code: 'ERR_CLOSED' })
    }
    await expect(ask(engine, asked[0]!).answer).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    await expect(engine.evaluate([1])).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    expect(engine.stats).toMatchObject(empty)
  }
})

test('a user who throws fails alone', async () => {
  const engine = engineOf()
  const request: Request = { prompt: tokens(10), maxTokens: 5, sampling: greedy }
  const thrown = new Error('thrown by its user')
  const bad = ask(engine, {
    ...request,
    onToken: ids => {
      if (ids.length === 3) throw thrown
    },
  })
  const good = ask(engine, request)
  expect((await soon(bad.answer)).error).toBe(thrown)
  expect(fault(request, await soon(good.answer))).toBe('')
  expect(engine.stats).toMatchObject(empty)
})
