import { describe, expect, test } from '@jest/globals'
import { type Found, noPage, Pages } from '../../lib/pages.ts'
import { Trial } from './pages_trial.ts'

/** Takes pages for these tokens, publishes them and gives those to use from now on. */
function fill(pages: Pages, tokens: readonly number[], taken = pages.take(Math.floor(tokens.length / pages.size))!): number[] {
  const used: number[] = []
  for (const [i, page] of taken.entries()) used.push(pages.publish(page, used.at(-1) ?? noPage, tokens, i * pages.size))
  return used
}

const nothing = (): Found => ({ pages: [], chains: [] })
/** The pages of the longest known beginning; the caller is a user of each. */
function find(pages: Pages, tokens: readonly number[]): number[] {
  const found = [...pages.find(tokens, nothing())]
  pages.retain(found)
  return found
}

describe('taking and releasing', () => {
  test('gives each page once, and nothing when there are not enough', () => {
    const pages = new Pages(5, 4)
    const [two, three] = [pages.take(2)!, pages.take(3)!]
    expect([...two, ...three].sort()).toEqual([0, 1, 2, 3, 4])
    expect([pages.available, pages.take(1), pages.take(0)]).toEqual([0, undefined, []])
    pages.release(two)
    expect([pages.available, pages.take(3), pages.available]).toEqual([2, undefined, 2])
    pages.release([])
    expect(pages.take(2)!.sort()).toEqual([...two].sort())
  })

  test('a page is free after its last user', () => {
    const pages = new Pages(2, 4)
    const taken = pages.take(1)!
    expect(pages.isShared(taken[0]!)).toBe(false)
    pages.retain(taken)
    expect(pages.isShared(taken[0]!)).toBe(true)
    pages.release(taken)
    expect([pages.isShared(taken[0]!), pages.available]).toEqual([false, 1])
    pages.release(taken)
    expect([pages.isShared(taken[0]!), pages.available]).toEqual([false, 2])
  })

  test.each([
    ['one that is free', (_: number[]) => [7]],
    ['one beyond the last', (_: number[]) => [8]],
    ['a negative one', (_: number[]) => [-1]],
    ['a fraction', (_: number[]) => [0.5]],
    ['a free one before others', ([a, b]: number[]) => [7, a!, b!]],
    ['a free one after others', ([a, b]: number[]) => [a!, b!, 7]],
    ['one twice', ([a, b, c]: number[]) => [c!, a!, b!, c!]],
  ])('refuses to release %s, and changes nothing', (_, wrong) => {
    const pages = new Pages(8, 2)
    const known = fill(pages, [1, 2, 3, 4])
    const taken = [...known, ...pages.take(1)!]
    const left = pages.take(4)!
    pages.release(left.filter(page => page === 7))
    const { available } = pages
    const page = wrong(taken).find(one => !taken.includes(one)) ?? taken[2]
    expect(() => pages.release(wrong(taken))).toThrow(`page ${page} is released but nobody uses it`)
    expect([pages.available, pages.idle, taken.some(one => pages.isShared(one))]).toEqual([available, 0, false])
    const others = pages.take(available)!
    expect(new Set([...taken, ...others]).size).toBe(3 + available)
    pages.release(taken) // still theirs to give back
    expect([pages.available, pages.idle, find(pages, [1, 2, 3, 4, 5])]).toEqual([3, 2, known])
  })

  test('refuses to share what is free', () => {
    const pages = new Pages(4, 1)
    pages.release(fill(pages, [5]))
    for (const page of [3, 2, 4, -1, 0.5]) expect(() => pages.retain([page])).toThrow(`page ${page} is shared but it is free`)
    expect([pages.available, pages.idle]).toEqual([4, 1])
  })

  test.each([
    [0, 16, 0],
    [1, 16, 1],
    [16, 16, 1],
    [17, 16, 2],
    [2 ** 31, 16, 2 ** 27],
  ])('%i tokens in pages of %i need %i', (tokens, size, expected) => {
    expect(new Pages(1, size).needed(tokens)).toBe(expected)
  })
})

describe('what is in the pages', () => {
  test('the longest known beginning is found, in whole pages, in use or not', () => {
    const pages = new Pages(8, 2)
    const used = fill(pages, [1, 2, 3, 4, 5, 6])
    expect(find(pages, [1, 2, 3, 4, 5])).toEqual(used.slice(0, 2))
    expect(used.map(page => pages.isShared(page))).toEqual([true, true, false])
    pages.release(used.slice(0, 2))
    pages.release(used)
    expect([pages.idle, pages.available]).toEqual([3, 8])
    expect(find(pages, [1, 2, 3, 4, 5, 6, 7, 8])).toEqual(used)
    expect([pages.idle, pages.available]).toEqual([0, 5])
    for (const none of [[], [1], [2, 1], [3, 4, 1, 2], [1, 3]]) expect(find(pages, none)).toEqual([])
  })

  test('what was found before is compared, not looked up again, and what has come since is found', () => {
    const pages = new Pages(8, 2)
    const [a, b] = fill(pages, [1, 2, 3, 4])
    const found = nothing()
    expect(pages.find([1, 2, 3, 4, 5, 6], found)).toEqual([a, b])
    expect([a, b].map(page => pages.isShared(page!))).toEqual([false, false])
    const [, , c] = fill(pages, [1, 2, 3, 4, 5, 6], [a!, b!, ...pages.take(1)!])
    expect(pages.find([0, 0, 0, 0, 5, 6], found)).toEqual([a, b, c]) // only the new ones are read
    pages.forget(b!)
    expect(pages.find([1, 2, 3, 4, 5, 6], found)).toEqual([a])
    fill(pages, [1, 2, 3, 4], [a!, b!])
    expect(pages.find([1, 2, 3, 4, 5, 6], found)).toEqual([a, b]) // c comes after what b was
  })

  test('equal tokens after different ones are different', () => {
    const pages = new Pages(8, 1)
    const [a, b] = [fill(pages, [1, 3, 3]), fill(pages, [2, 3, 3])]
    expect(new Set([...a, ...b]).size).toBe(6)
    expect([find(pages, [1, 3, 3]), find(pages, [2, 3, 3]), find(pages, [3])]).toEqual([a, b, []])
  })

  test('nor are tokens mistaken that look alike when they are joined', () => {
    const pages = new Pages(8, 2)
    expect(fill(pages, [1, 11])).not.toEqual(fill(pages, [11, 1]))
  })

  test('what comes after a forgotten page is not found after the next one in it', () => {
    const pages = new Pages(2, 1)
    const [first, second] = fill(pages, [1, 2])
    pages.release([first!])
    expect(pages.take(1)).toEqual([first])
    expect(fill(pages, [3], [first!])).toEqual([first])
    expect([find(pages, [3, 2]), find(pages, [1, 2]), pages.isShared(second!)]).toEqual([[first], [], false])
  })

  test('who publishes what is known goes on with the known page', () => {
    const pages = new Pages(8, 2)
    const first = fill(pages, [1, 2, 3, 4])
    const own = pages.take(2)!
    expect(pages.available).toBe(4)
    expect(fill(pages, [1, 2, 3, 4], own)).toEqual(first)
    expect([pages.available, pages.idle, first.every(page => pages.isShared(page))]).toEqual([6, 0, true])
    expect(fill(pages, [1, 2, 3, 4], first)).toEqual(first) // once more: nothing happens
    pages.release(first)
    pages.release(first)
    expect([pages.available, pages.idle]).toEqual([8, 2])
  })

  test('a known page that nobody uses is taken into use by who publishes the same', () => {
    const pages = new Pages(2, 1)
    const first = fill(pages, [1])
    pages.release(first)
    const own = pages.take(1)!
    expect([pages.idle, fill(pages, [1], own), pages.idle, pages.available]).toEqual([1, first, 0, 1])
    expect(pages.take(1)).toEqual(own)
    expect(pages.take(1)).toBeUndefined()
  })

  test('what was released first is forgotten first, a chain from its end, and only when nothing is free', () => {
    const pages = new Pages(6, 1)
    const [a, b] = [fill(pages, [1, 1]), fill(pages, [2, 2])]
    pages.release(a)
    pages.release(b)
    expect(find(pages, [1])).toEqual([a[0]]) // wanted again: later now
    pages.release([a[0]!])
    expect(new Set(pages.take(2)!).size).toBe(2)
    expect(pages.idle).toBe(4)
    expect([pages.take(1), pages.take(1)]).toEqual([[a[1]], [b[1]]])
    const found = find(pages, [2, 2])
    expect(found).toEqual([b[0]])
    expect(pages.take(2)).toBeUndefined() // b[0] is in use
    expect([pages.take(1), find(pages, [1]), pages.available]).toEqual([[a[0]], [], 0])
  })

  test('clear forgets what nobody uses, forget what is in one page', () => {
    const pages = new Pages(6, 1)
    const [used, idle] = [fill(pages, [1, 2]), fill(pages, [3, 4])]
    pages.release(idle)
    pages.clear()
    expect([pages.idle, pages.available, find(pages, [3]), find(pages, [1, 2])]).toEqual([0, 4, [], used])
    expect(pages.take(4)!.every(page => !used.includes(page))).toBe(true)
    expect([pages.forget(used[1]!), find(pages, [1, 2])]).toEqual([undefined, [used[0]]])
  })
})

test('10^7 random operations, each followed by a comparison with a model', () => {
  const [trials, steps] = [500, 20_000]
  const seen: Record<string, number> = {}
  for (let seed = 0; seed < trials; seed++) {
    const trial = new Trial(seed)
    let step = 0
    try {
      for (; step < steps; step++) trial.step()
      trial.end()
    } catch (error) {
      throw new Error(`new Trial(${seed}), step ${step}: ${(error as Error).message}`, { cause: error })
    }
    for (const [what, times] of Object.entries(trial.seen)) seen[what] = (seen[what] ?? 0) + times
  }
  // That all of it happened, and often.
  const often = Object.fromEntries(Object.entries(seen).map(([what, times]) => [what, times > 20_000]))
  expect(often).toEqual({ found: true, evicted: true, swapped: true, refused: true, thrown: true })
})
