import { describe, expect, test } from '@jest/globals'
import type { Batch } from '../../lib/scheduler.ts'
import { continuation, type Job, randoms, ShadowEngine, type ShadowLimits, tokens } from './shadow_engine.ts'
import { Trial } from './shadow_trial.ts'

test('100,000 requests: each sees its own history, limits and order hold, all end, no page is lost', () => {
  const seen = { hits: 0, preemptions: 0, copies: 0, guessed: 0 }
  for (let seed = 0; seed < 2500; seed++) {
    const trial = new Trial(seed)
    try {
      trial.run(40)
    } catch (error) {
      throw new Error(`new Trial(${seed}) ${JSON.stringify(trial.limits)}: ${(error as Error).message}`, { cause: error })
    }
    seen.hits += trial.engine.scheduler.hits
    seen.preemptions += trial.engine.scheduler.preemptions
    seen.copies += trial.engine.copies
    seen.guessed += trial.engine.guessed
  }
  // That all of it happened, and often.
  const often = Object.fromEntries(Object.entries(seen).map(([what, times]) => [what, times > 5000]))
  expect(often).toEqual({ hits: true, preemptions: true, copies: true, guessed: true })
})

const engineOf = (limits: Partial<ShadowLimits> = {}) =>
  new ShadowEngine({ count: 64, size: 4, maxSequences: 8, maxBatchTokens: 64, prefixCache: true, ...limits })
const random = randoms(0)
/** Prompts that do not begin alike. */
const prompt = (length: number) => tokens(random, length)
/** What a step computes: [arrival, from, to]. */
const shape = (engine: ShadowEngine, { work }: Batch) =>
  work.map(({ sequence, from, to }) => [
    [...engine.jobs, ...engine.ended].find(job => job.sequence === sequence)!.arrival,
    from,
    to,
  ])
const step = (engine: ShadowEngine, options?: Parameters<ShadowEngine['step']>[0]) => shape(engine, engine.step(options))
/** Gives the steps it took. */
function until(engine: ShadowEngine, done: () => boolean): number {
  const { steps } = engine
  for (; !done(); engine.step()) if (engine.steps - steps > 500) throw new Error('500 steps, and no end')
  return engine.steps - steps
}
const finish = (engine: ShadowEngine) => until(engine, () => engine.jobs.length === 0)

describe('a step', () => {
  test('has one token of each that generates, and of prompts as much as there is room for', () => {
    const engine = engineOf({ maxBatchTokens: 10 })
    engine.add({ prompt: prompt(3), maxTokens: 9 })
    engine.add({ prompt: prompt(17), maxTokens: 9 })
    engine.add({ prompt: prompt(12), maxTokens: 9 })
    expect(step(engine)).toEqual([[0, 0, 3], [1, 0, 7]]) // biome-ignore format: a table
    expect(step(engine)).toEqual([[0, 3, 4], [1, 7, 16]]) // biome-ignore format: a table
    expect(step(engine)).toEqual([[0, 4, 5], [1, 16, 17], [2, 0, 8]]) // biome-ignore format: a table
    expect(step(engine)).toEqual([[0, 5, 6], [1, 17, 18], [2, 8, 12]]) // biome-ignore format: a table
    expect(step(engine)).toEqual([[0, 6, 7], [1, 18, 19], [2, 12, 13]]) // biome-ignore format: a table
  })

  test('keeps tokens for those that generate, also where a prompt goes before them', () => {
    const engine = engineOf({ maxBatchTokens: 8 })
    for (let i = 0; i < 3; i++) engine.add({ prompt: prompt(1), maxTokens: 30 })
    step(engine)
    engine.add({ prompt: prompt(20), maxTokens: 1, priority: 1 })
    expect(step(engine)).toEqual([[3, 0, 5], [0, 1, 2], [1, 1, 2], [2, 1, 2]]) // biome-ignore format: a table
  })

  test('nobody overtakes the first who waits, for a place, tokens or pages', () => {
    for (const limits of [{ maxSequences: 1 }, { maxBatchTokens: 10 }, { count: 12 }]) {
      const engine = engineOf({ maxBatchTokens: 64, ...limits })
      engine.add({ prompt: prompt(10), maxTokens: 1 })
      engine.add({ prompt: prompt(40), maxTokens: 9 })
      engine.add({ prompt: prompt(1), maxTokens: 1 })
      expect([step(engine), engine.scheduler.running, engine.scheduler.waiting]).toEqual([[[0, 0, 10]], 1, 2])
      step(engine)
      expect(step(engine)[0]![0]).toBe(1)
    }
  })

  test('without admission only those who run go on', () => {
    const engine = engineOf()
    engine.add({ prompt: prompt(3), maxTokens: 9 })
    expect(step(engine, { admit: false })).toEqual([])
    expect(step(engine)).toEqual([[0, 0, 3]])
    engine.add({ prompt: prompt(5), maxTokens: 9 })
    expect(step(engine, { admit: false })).toEqual([[0, 3, 4]])
    expect(step(engine)).toEqual([[0, 4, 5], [1, 0, 5]]) // biome-ignore format: a table
  })

  test('in lockstep none is prepared before the token of the one before is read', () => {
    const engine = engineOf()
    engine.add({ prompt: prompt(6), maxTokens: 3, lockstep: true })
    const steps = Array.from({ length: 5 }, () => step(engine))
    expect(steps).toEqual([[[0, 0, 6]], [], [[0, 6, 7]], [], [[0, 7, 8]]])
  })

  test('does not sample what is not ready', () => {
    const engine = engineOf({ maxBatchTokens: 8 })
    const job = engine.add({ prompt: prompt(12), maxTokens: 3, ready: () => true })
    job.ready = false
    expect([step(engine), step(engine), step(engine)]).toEqual([[[0, 0, 8]], [[0, 8, 11]], []])
    job.ready = true
    expect(step(engine)).toEqual([[0, 11, 12]])
  })

  test('guesses that come true are tokens, up to maxTokens and to the pages that nobody misses', () => {
    const count = (limits: Partial<ShadowLimits>, wrong = false) => {
      const engine = engineOf(limits)
      const guess = (known: readonly number[]) => continuation(known, wrong ? 1 : 0, 7)
      const { sequence } = engine.add({ prompt: prompt(5), maxTokens: 16, guess })
      return [finish(engine), sequence.generated, engine.guessed]
    }
    expect(count({ pipelined: false })).toEqual([3, 16, 13]) // 1 of the prompt, 8, 7
    expect(count({ pipelined: false, maxBatchTokens: 3, maxSequences: 1 })[1]).toBe(16)
    expect(count({ pipelined: false, count: 5 })[1]).toBe(16)
    const [steps, generated] = count({ pipelined: false }, true)
    expect([steps! > 10, generated]).toEqual([true, 16])
  })

  test('has guesses where nobody wants the room, be it of those who run or of one who waits', () => {
    const engine = engineOf({ maxBatchTokens: 8, pipelined: false })
    engine.add({ prompt: prompt(2), maxTokens: 30, guess: known => continuation(known, 0, 7) })
    engine.step()
    engine.add({ prompt: prompt(9), maxTokens: 1 })
    expect(step(engine)).toEqual([[0, 2, 3], [1, 0, 7]]) // biome-ignore format: a table
    expect(step(engine)).toEqual([[0, 3, 9], [1, 7, 9]]) // biome-ignore format: a table
  })

  test('has at most 128 rows of guesses', () => {
    const engine = engineOf({ pipelined: false, maxSequences: 10, maxBatchTokens: 400, count: 200 })
    const guess = (known: readonly number[]) => continuation(known, 0, 16)
    for (let i = 0; i < 10; i++) engine.add({ prompt: prompt(5), maxTokens: 40, guess })
    engine.step()
    const rows = engine.step().work.map(work => work.rows)
    expect(rows).toEqual([17, 17, 17, 17, 17, 17, 17, 17, 1, 1])
  })

  test('a prompt that is looked at goes through the head whole, at most 128 rows more than sequences, never from the cache', () => {
    const engine = engineOf({ maxBatchTokens: 400, count: 200 })
    const asked = { prompt: prompt(300), maxTokens: 4 }
    engine.add(asked)
    finish(engine)
    engine.add({ ...asked, scoresPrompt: true })
    engine.add({ ...asked, scoresPrompt: true })
    const rows: number[][] = []
    while (engine.jobs.length > 0 && rows.length < 20) rows.push(engine.step().work.map(work => work.rows))
    expect(rows.slice(0, 4)).toEqual([[129, 1], [129, 1], [42, 88], [1, 129]]) // biome-ignore format: a table
    expect(engine.scheduler.hits).toBe(0)
  })
})

describe('what is in the cache', () => {
  test.each([
    ['nothing alike', prompt(11), 0],
    ['whole pages of it', undefined, 8],
  ])('%s is computed once', (_, other, hits) => {
    const engine = engineOf()
    const first = prompt(11)
    engine.add({ prompt: first, maxTokens: 1 })
    finish(engine)
    engine.add({ prompt: other ?? first, maxTokens: 3 })
    expect([step(engine), engine.scheduler.hits]).toEqual([[[1, hits, 11]], hits])
    finish(engine)
    expect([engine.used, engine.copies]).toEqual([0, 0])
  })

  test('answers are found, too', () => {
    const engine = engineOf()
    const { sequence } = engine.add({ prompt: prompt(6), maxTokens: 7 })
    finish(engine)
    engine.add({ prompt: [...sequence.tokens, ...prompt(3)], maxTokens: 1 })
    expect(step(engine)).toEqual([[1, 12, 16]])
  })

  test('of a prompt that is there wholly the last token is computed, in a page of its own if others use it', () => {
    const engine = engineOf()
    const asked = { prompt: prompt(12), maxTokens: 6 }
    engine.add(asked)
    finish(engine)
    engine.add(asked)
    expect([step(engine), engine.copies, engine.used]).toEqual([[[1, 11, 12]], 0, 3])
    engine.add(asked)
    engine.add(asked)
    expect(step(engine)).toEqual([[1, 12, 13], [2, 11, 12], [3, 11, 12]]) // biome-ignore format: a table
    expect([engine.copies, engine.used]).toEqual([2, 3 + 1 + 2])
    step(engine)
    step(engine) // the copies are known to be equal: all use the first one again
    expect(engine.used).toBe(3 + 3)
    finish(engine)
    expect([engine.used, engine.pages.idle]).toEqual([0, 4])
  })

  test('who waits leaves it as it is', () => {
    const engine = engineOf({ count: 12 })
    const [wanted, other] = [prompt(8), prompt(8)]
    for (const prompt of [wanted, other]) engine.add({ prompt, maxTokens: 1 })
    finish(engine)
    const { sequence } = engine.add({ prompt: prompt(12), maxTokens: 9 })
    engine.step()
    engine.outside = engine.pages.take(5)!
    engine.add({ prompt: [...wanted, ...prompt(28)], maxTokens: 1 })
    until(engine, () => sequence.pages.length === 4)
    const found = [wanted, other].map(tokens => engine.pages.find(tokens, { pages: [], chains: [] }).length)
    expect([found, engine.scheduler.waiting, engine.scheduler.hits]).toEqual([[1, 2], 1, 0])
  })

  test('counts once for who has lost its pages and starts again', () => {
    const engine = engineOf({ maxSequences: 1 })
    const asked = { prompt: prompt(11), maxTokens: 9 }
    engine.add(asked)
    finish(engine)
    engine.add(asked)
    for (let i = 0; i < 5; i++) engine.step()
    engine.add({ prompt: prompt(5), maxTokens: 1, priority: 1 })
    finish(engine)
    expect([engine.scheduler.preemptions, engine.scheduler.hits]).toEqual([1, 8])
  })

  test('nothing is found without a prefix cache', () => {
    const engine = engineOf({ prefixCache: false })
    const asked = { prompt: prompt(12), maxTokens: 1 }
    engine.add(asked)
    finish(engine)
    engine.add(asked)
    expect([step(engine), engine.scheduler.hits, engine.pages.idle]).toEqual([[[1, 0, 12]], 0, 0])
  })
})

describe('several of one prompt', () => {
  const group = (engine: ShadowEngine, n: number, length: number, maxTokens: number) => {
    const asked = { prompt: prompt(length), maxTokens }
    const leader = engine.add(asked)
    const others = Array.from({ length: n - 1 }, (_, i) => engine.add({ ...asked, salt: i + 1, leader: leader.sequence }))
    return [leader, ...others]
  }

  test.each([true, false])('share its pages; prefix cache: %p', prefixCache => {
    const engine = engineOf({ prefixCache })
    group(engine, 8, 18, 5)
    expect([step(engine), step(engine)]).toEqual([[[0, 0, 18]], [[0, 18, 19]]])
    expect(step(engine)).toEqual([[0, 19, 20], ...Array.from({ length: 7 }, (_, i) => [i + 1, 17, 18])])
    expect(engine.used).toBe(4 + 8) // four whole pages, and of the fifth each has his own
    finish(engine)
    expect([engine.used, engine.copies]).toEqual([0, 7])
  })

  test('whose leader ends or fails early go on without it', () => {
    for (const steps of [0, 1, 2, 3]) {
      const engine = engineOf({ maxBatchTokens: 10 })
      const [leader] = group(engine, 3, 18, 5)
      for (let i = 0; i < steps; i++) engine.step()
      engine.remove(leader!)
      expect(finish(engine)).toBeLessThan(12)
      expect([engine.used, engine.ended.slice(1).map(job => job.sequence.generated)]).toEqual([0, [5, 5]])
    }
  })

  test('start again with their own tokens, where more of them are known', () => {
    const engine = engineOf({ maxSequences: 2 })
    const [, other] = group(engine, 2, 18, 30)
    until(engine, () => other!.sequence.published === 6)
    engine.add({ prompt: prompt(5), maxTokens: 1, priority: 1 })
    expect([step(engine), engine.scheduler.preemptions]).toEqual([[[2, 0, 5], expect.anything()], 1])
    until(engine, () => other!.runs)
    expect(other!.sequence.settled).toBe(24)
    finish(engine)
  })

  // The leader fills its last page, which gets known, then goes: another one is the only user of that page.
  test('do not write into what is known of the leader', () => {
    for (let i = 0; i < 10; i++) {
      const engine = engineOf()
      const asked = { prompt: prompt(6), maxTokens: 9 }
      const leader = engine.add(asked)
      if (i % 2 === 1) until(engine, () => leader.sequence.published === 2) // before the other one comes
      const other = engine.add({ ...asked, salt: 1, leader: leader.sequence, ready: () => true })
      other.ready = false
      until(engine, () => other.runs && leader.sequence.published === 2)
      expect(other.sequence.pages[1]).toBe(leader.sequence.pages[1])
      engine.remove(leader)
      other.ready = true
      finish(engine)
      engine.add({ prompt: [...leader.sequence.tokens, ...prompt(3)], maxTokens: 1 })
      finish(engine)
    }
  })
})

describe('in little room', () => {
  test.each([true, false])('sequences of which only one fits all end; prefix cache: %p', prefixCache => {
    const engine = engineOf({ count: 5, prefixCache })
    for (let i = 0; i < 6; i++) engine.add({ prompt: prompt(8), maxTokens: 13 })
    expect(engine.scheduler.pagesFor(8, 13)).toBe(5)
    finish(engine)
    expect([engine.ended.map(job => job.arrival), engine.scheduler.preemptions > 0]).toEqual([[0, 1, 2, 3, 4, 5], true])
  })

  test('nobody loses its pages to one that cannot start with them', () => {
    const engine = engineOf({ count: 8 })
    engine.add({ prompt: prompt(15), maxTokens: 2 })
    engine.add({ prompt: prompt(3), maxTokens: 9 })
    engine.step()
    engine.add({ prompt: prompt(20), maxTokens: 2, priority: 1.5 / 64 }) // goes between them
    expect([step(engine), engine.scheduler.preemptions]).toEqual([[[0, 15, 16], [1, 3, 4]], 0]) // biome-ignore format: a table
  })

  test('nobody starts with the page that another one will need next', () => {
    const engine = engineOf({ count: 4 })
    const { sequence } = engine.add({ prompt: prompt(8), maxTokens: 9 })
    until(engine, () => sequence.computed === 10)
    engine.add({ prompt: prompt(3), maxTokens: 9 })
    finish(engine)
    expect(engine.scheduler.preemptions).toBe(0)
  })

  test('who finds no page, and nobody after it has one, keeps its own', () => {
    const engine = engineOf({ count: 5 })
    engine.add({ prompt: prompt(8), maxTokens: 5 })
    const last = engine.add({ prompt: prompt(7), maxTokens: 5 })
    until(engine, () => last.sequence.computed === 8)
    expect([step(engine).length, engine.pages.available, finish(engine) < 10, engine.scheduler.preemptions]).toEqual([
      1,
      0,
      true,
      0,
    ])
  })

  test('nobody loses pages to guesses', () => {
    const engine = engineOf({ count: 6, pipelined: false })
    const wrong = (known: readonly number[]) => continuation(known, 0, 12).map(token => (token + 1) % 3)
    engine.add({ prompt: prompt(7), maxTokens: 6 })
    engine.add({ prompt: prompt(3), maxTokens: 16, guess: wrong })
    finish(engine)
    expect(engine.scheduler.preemptions).toBe(0)
  })

  test.each([{ maxSequences: 2 }, { maxSequences: 2, maxBatchTokens: 2 }, { count: 7 }])(
    '%j: who goes first is let in',
    limits => {
      const engine = engineOf(limits)
      for (let i = 0; i < 2; i++) engine.add({ prompt: prompt(2), maxTokens: 20 })
      for (let i = 0; i < 4; i++) engine.step()
      engine.add({ prompt: prompt(14), maxTokens: 2, priority: 1 })
      expect([step(engine)[0]![0], engine.scheduler.preemptions]).toEqual([2, 1])
      finish(engine)
      expect(engine.ended.map(job => job.arrival)).toEqual([2, 0, 1])
    },
  )

  test('of priorities: p overtakes the 64 p before it, so nobody waits for ever', () => {
    const engine = engineOf({ maxSequences: 1 })
    const first = engine.add({ prompt: prompt(2), maxTokens: 1 })
    const low = engine.add({ prompt: prompt(2), maxTokens: 1 })
    for (; !low.ended; engine.step()) {
      for (let i = 0; i < 2; i++) engine.add({ prompt: prompt(2), maxTokens: 2, priority: 2 })
      expect(engine.steps).toBeLessThan(1000)
    }
    const ended = engine.ended.map(job => job.arrival)
    expect([first.ended, ended.length, Math.max(...ended)]).toEqual([true, 129, 128])
  })

  const states: Record<string, (engine: ShadowEngine, job: Job) => unknown> = {
    waits: () => {},
    'is in the middle of its prompt': engine => engine.step(),
    'has the end of its prompt under way': engine => [engine.step(), engine.step(), engine.step()],
    generates: engine => [...Array(6)].map(() => engine.step()),
    'has its last token under way': (engine, job) => until(engine, () => job.finishes),
    'has lost its pages': (engine, job) => {
      engine.step()
      engine.add({ prompt: prompt(60), maxTokens: 1, priority: 1 })
      engine.step()
      expect([job.runs, engine.scheduler.preemptions]).toEqual([false, 1])
    },
    'is shared': (engine, job) => {
      engine.add({ ...job.asked, leader: job.sequence })
      for (let i = 0; i < 7; i++) engine.step()
      expect(engine.jobs.every(one => one.runs)).toBe(true)
    },
  }
  test.each(Object.entries(states))('a sequence that %s can be removed, its pages are free at once', (_, bring) => {
    const engine = engineOf({ count: 16, maxBatchTokens: 10 })
    const job = engine.add({ prompt: prompt(25), maxTokens: 9 })
    bring(engine, job)
    engine.remove(job) // holds that what has no user is free
    engine.scheduler.remove(job.sequence) // twice: nothing happens
    expect(engine.used).toBe(new Set(engine.jobs.flatMap(other => other.sequence.pages)).size)
    finish(engine)
    engine.pages.clear()
    expect([engine.used, engine.pages.idle, engine.scheduler.running, engine.scheduler.waiting]).toEqual([0, 0, 0, 0])
  })

  test('the last token generated needs no place', () => {
    const { scheduler } = engineOf()
    expect([scheduler.pagesFor(4, 1), scheduler.pagesFor(4, 2), scheduler.pagesFor(1, 64)]).toEqual([1, 2, 16])
  })
})
