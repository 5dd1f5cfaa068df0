import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Pages } from '../../lib/pages.ts'
import { samplingParameters } from '../../lib/sampling.ts'
import { Scheduler } from '../../lib/scheduler.ts'
import { Sequence } from '../../lib/sequence.ts'

const sampling = samplingParameters({ seed: 1 }, { doSample: false, temperature: 0 })
const sequence = (promptLength: number, maxTokens: number) => new Sequence(new Array(promptLength).fill(1), maxTokens, sampling)

/** What the engine does after a step. */
function settle(one: Sequence): void {
  one.computed = one.tokens.length
  one.tokens.push(1)
}

/** expect is slow, and this is asked a million times. */
function hold(condition: boolean, what: string): void {
  if (!condition) throw new Error(`does not hold: ${what}`)
}

describe('a simulated engine', () => {
  const request = fc.record({
    prompt: fc.integer({ min: 1, max: 40 }),
    max: fc.integer({ min: 1, max: 24 }),
    /** Step in which it is added; tokens after which it stops by itself; step in which its user aborts it. */
    arrives: fc.nat(12),
    stops: fc.integer({ min: 1, max: 30 }),
    aborted: fc.oneof({ arbitrary: fc.constant(Number.POSITIVE_INFINITY), weight: 3 }, { arbitrary: fc.nat(40), weight: 1 }),
  })
  const limits = fc.record({
    maxSequences: fc.integer({ min: 1, max: 6 }),
    maxBatchTokens: fc.integer({ min: 40, max: 80 }),
    size: fc.constantFrom(1, 5, 16),
    spare: fc.nat(30),
  })

  test('never exceeds a limit, starts in order, finishes everything and gives all pages back', () => {
    fc.assert(
      fc.property(fc.array(request, { minLength: 1, maxLength: 25 }), limits, (requests, limit) => {
        const count = Math.ceil((40 + 24 - 1) / limit.size) + limit.spare // what is admitted at all fits alone
        const pages = new Pages(count, limit.size)
        const scheduler = new Scheduler(pages, limit)
        const jobs = requests.map(r => ({ ...r, sequence: sequence(r.prompt, r.max) }))
        const order = [...jobs].sort((a, b) => a.arrives - b.arrives).map(job => job.sequence) // stable
        const started: Sequence[] = []
        const ended = new Set<Sequence>()
        const end = (one: Sequence) => {
          scheduler.remove(one)
          hold(one.pages.length === 0, 'who ended has no pages')
          ended.add(one)
        }

        for (let step = 0; ended.size < jobs.length; step++) {
          hold(step < 2000, 'progress')
          for (const job of jobs) {
            if (job.arrives === step) scheduler.add(job.sequence)
            if (job.arrives <= step && job.aborted <= step && !ended.has(job.sequence)) end(job.sequence)
          }
          const before = scheduler.waiting + scheduler.running
          const batch = scheduler.schedule()
          hold(scheduler.running === batch.length && scheduler.waiting + scheduler.running === before, 'all are counted')
          hold(before === 0 || batch.length > 0, 'progress')
          hold(batch.length <= limit.maxSequences, 'maxSequences')
          hold(batch.reduce((sum, one) => sum + one.pending, 0) <= limit.maxBatchTokens, 'maxBatchTokens')
          const held = batch.flatMap(one => one.pages)
          hold(new Set(held).size === held.length, 'no page is shared')
          hold(held.length + pages.free === count, 'no page is lost')
          for (const one of batch) {
            hold(!ended.has(one), 'who ended does not run')
            hold(one.pages.length * limit.size >= one.tokens.length, 'all that is computed has a place')
            if (!started.includes(one)) started.push(one)
          }
          hold(
            started.every(one => batch.includes(one) || ended.has(one)),
            'who runs is not held up',
          )
          for (const job of jobs) {
            if (!batch.includes(job.sequence)) continue
            settle(job.sequence)
            if (job.sequence.generated >= Math.min(job.max, job.stops)) end(job.sequence)
          }
        }
        expect(pages.free).toBe(count)
        expect(scheduler.waiting + scheduler.running).toBe(0)
        const ran = new Set(started)
        expect(started).toEqual(order.filter(one => ran.has(one)))
        for (const job of jobs) if (job.aborted === Number.POSITIVE_INFINITY) expect(ran.has(job.sequence)).toBe(true)
      }),
      { seed: 2, numRuns: 300 },
    )
  })
})

describe('one step', () => {
  const make = (pages: number, size: number, maxSequences: number, maxBatchTokens: number) => {
    const all = new Pages(pages, size)
    return { pages: all, scheduler: new Scheduler(all, { maxSequences, maxBatchTokens }) }
  }

  test('the last token generated needs no place', () => {
    const { scheduler } = make(4, 16, 1, 64)
    expect(scheduler.pagesFor(16, 1)).toBe(1)
    expect(scheduler.pagesFor(16, 2)).toBe(2)
    expect(scheduler.pagesFor(1, 64)).toBe(4)
  })

  test.each([
    { what: 'sequences', pages: 99, maxSequences: 1, maxBatchTokens: 64 },
    { what: 'tokens', pages: 99, maxSequences: 8, maxBatchTokens: 34 },
    { what: 'pages', pages: 2, maxSequences: 8, maxBatchTokens: 64 },
  ])('a large one that waits for $what is not overtaken by a small one', ({ pages, maxSequences, maxBatchTokens }) => {
    const { scheduler } = make(pages, 16, maxSequences, maxBatchTokens)
    const [running, large, small] = [sequence(10, 2), sequence(30, 2), sequence(1, 1)]
    for (const one of [running, large, small]) scheduler.add(one)
    expect(scheduler.schedule()).toEqual([running])
    scheduler.remove(running)
    expect(scheduler.schedule()[0]).toBe(large)
  })

  test('without admission only those who run go on', () => {
    const { scheduler } = make(9, 16, 4, 64)
    const [first, second] = [sequence(3, 3), sequence(3, 3)]
    scheduler.add(first)
    expect(scheduler.schedule(false)).toEqual([])
    expect(scheduler.schedule()).toEqual([first])
    scheduler.add(second)
    expect(scheduler.schedule(false)).toEqual([first])
    expect(scheduler.schedule()).toEqual([first, second])
  })

  test('remove is possible in any state, and twice', () => {
    const { pages, scheduler } = make(9, 16, 1, 64)
    const [running, waiting, foreign] = [sequence(3, 3), sequence(3, 3), sequence(3, 3)]
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.schedule()
    for (const one of [foreign, waiting, waiting, running, running]) scheduler.remove(one)
    expect([pages.free, scheduler.running, scheduler.waiting]).toEqual([9, 0, 0])
    expect(scheduler.schedule()).toEqual([])
  })
})
