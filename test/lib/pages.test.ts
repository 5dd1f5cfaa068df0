import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Pages } from '../../lib/pages.ts'

const seed = 1

describe('Pages', () => {
  test('against a model: no page is lost, none is shared', () => {
    const step = fc.oneof(
      fc.record({ kind: fc.constant('take' as const), n: fc.nat(9) }),
      fc.record({ kind: fc.constant('release' as const), n: fc.nat(100) }),
    )
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 20 }), fc.array(step, { maxLength: 60 }), (count, steps) => {
        const pages = new Pages(count, 16)
        const held: number[][] = []
        for (const { kind, n } of steps) {
          if (kind === 'take') {
            const free = pages.free
            const taken = pages.take(n)
            expect(taken === undefined).toBe(n > free)
            expect(pages.free).toBe(taken ? free - n : free)
            if (taken) {
              expect(taken.length).toBe(n)
              held.push(taken)
            }
          } else if (held.length > 0) pages.release(held.splice(n % held.length, 1)[0]!)
          const all = held.flat()
          expect(new Set(all).size).toBe(all.length)
          expect(all.every(page => Number.isInteger(page) && page >= 0 && page < count)).toBe(true)
          expect(all.length + pages.free).toBe(count)
        }
        for (const some of held) pages.release(some)
        expect(pages.take(count)?.sort((a, b) => a - b)).toEqual(Array.from({ length: count }, (_, i) => i))
        expect(pages.take(1)).toBeUndefined()
      }),
      { seed, numRuns: 300 },
    )
  })

  test.each([
    ['one that is free', 3, (_: number[]) => [7]],
    ['one beyond the last', 3, (_: number[]) => [8]],
    ['a negative one', 3, (_: number[]) => [-1]],
    ['a fraction', 3, (_: number[]) => [0.5]],
    ['a taken one, then a free one', 3, (taken: number[]) => [taken[0]!, taken[1]!, 7]],
    ['a taken one twice', 3, (taken: number[]) => [taken[0]!, taken[1]!, taken[0]!]],
  ])('refuses to release %s, and changes nothing', (_, count, wrong) => {
    const pages = new Pages(8, 16)
    const taken = pages.take(count)!
    expect(taken).not.toContain(7)
    expect(() => pages.release(wrong(taken))).toThrow(`page ${wrong(taken).at(-1)} is released but not taken`)
    expect(pages.free).toBe(8 - count)
    const others = pages.take(8 - count)!
    expect(new Set([...taken, ...others]).size).toBe(8)
    pages.release(taken) // still theirs to give back
    pages.release(others)
    expect(pages.free).toBe(8)
    expect(() => pages.release(taken)).toThrow('released but not taken')
  })

  test('taking none and releasing none is possible at any time', () => {
    const pages = new Pages(1, 4)
    expect(pages.take(0)).toEqual([])
    pages.release([])
    expect(pages.take(1)).toEqual([0])
    expect(pages.take(0)).toEqual([])
  })

  test.each([
    [0, 16, 0],
    [1, 16, 1],
    [16, 16, 1],
    [17, 16, 2],
    [7, 1, 7],
    [2 ** 31, 16, 2 ** 27],
  ])('%i tokens in pages of %i need %i', (tokens, size, expected) => {
    expect(new Pages(1, size).needed(tokens)).toBe(expected)
  })
})
