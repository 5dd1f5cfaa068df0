import { describe, expect, test } from '@jest/globals'
import { mostAtOnce, PromptLookup } from '../../lib/lookup.ts'
import { randoms } from './shadow_engine.ts'

/** The same, by comparing. */
function reference(tokens: readonly number[], most: number): readonly number[] {
  for (let n = Math.min(4, tokens.length); n >= 2; n--) {
    const last = tokens.slice(-n).join()
    for (let at = tokens.length - 1; at >= n; at--)
      if (tokens.slice(at - n, at).join() === last) return tokens.slice(at, at + most)
  }
  return []
}

describe('guesses', () => {
  test.each([
    ['nothing of nothing', [], []],
    ['nothing of one token', [1], []],
    ['nothing of what is new', [1, 2, 3, 4, 5], []],
    ['nothing of one token that was there', [1, 2, 3, 1], []],
    ['what followed two tokens', [1, 2, 3, 4, 5, 1, 2], [3, 4, 5]],
    ['what followed last', [1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]],
    ['what followed the longest run', [9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [3, 8, 1]],
    ['no more than there is', [7, 7, 7], [7]],
  ])('%s', (_, tokens, expected) => {
    expect(new PromptLookup(3).guess(tokens)).toEqual(expected)
  })

  test('as a comparison of all runs, token by token', () => {
    const random = randoms(1)
    for (let of = 1; of < 40; of++) {
      const lookup = new PromptLookup(5)
      const tokens = Array.from({ length: random(50) }, () => random(of))
      for (let i = 0; i < 100; i++) {
        expect(lookup.guess(tokens)).toEqual(reference(tokens, 5))
        tokens.push(random(of))
      }
    }
  })

  test('of a long prompt what it has taken in, more with each step', () => {
    const random = randoms(2)
    const tokens = Array.from({ length: 4 * mostAtOnce }, () => random(128_256))
    tokens.push(...tokens.slice(2 * mostAtOnce, 2 * mostAtOnce + 4))
    const lookup = new PromptLookup(3)
    const found = [1, 2, 3, 4].map(() => lookup.guess(tokens).length)
    expect([found, lookup.guess(tokens)]).toEqual([[0, 0, 3, 3], reference(tokens, 3)])
  })
})
