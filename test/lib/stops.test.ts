import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { StopMatcher } from '../../lib/stops.ts'

const seed = Number(process.env.SEED ?? 20260102) // in the report of a failure, with the smallest case

interface Outcome {
  pieces: string[]
  stop?: string
}

/** All that comes out for a text in these pieces. */
function run(stops: readonly string[], chunks: readonly string[]): Outcome {
  const matcher = new StopMatcher(stops)
  const pieces: string[] = []
  for (const chunk of chunks) {
    const { text, stopped, stop } = matcher.push(chunk)
    pieces.push(text)
    if (stopped) return { pieces, stop: stop! }
  }
  return { pieces: [...pieces, matcher.end()] }
}

/** The same by trying every end: the stop that is complete first, of those the longest. */
function naive(stops: readonly string[], text: string): { text: string; stop?: string } {
  for (let end = 1; end <= text.length; end++) {
    const found = stops.filter(stop => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0]
    if (found !== undefined) return { text: text.slice(0, end - found.length), stop: found }
  }
  return { text }
}

/** How much a proper beginning of a stop takes of the end of the text. */
function withheld(stops: readonly string[], text: string): number {
  for (let length = text.length; length > 0; length--) {
    if (stops.some(stop => stop.length > length && stop.startsWith(text.slice(-length)))) return length
  }
  return /[\ud800-\udbff]$/.test(text) ? 1 : 0
}

const letters = fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: 6 })
const mixed = fc.string({ unit: fc.constantFrom('a', 'é', '😀', '😁', '\n'), minLength: 1, maxLength: 5 })
const cases = [
  ['two letters', fc.array(letters, { maxLength: 5 }), fc.array(fc.string({ unit: fc.constantFrom('a', 'b'), maxLength: 4 }))],
  [
    'surrogate pairs',
    fc.array(mixed, { maxLength: 4 }),
    fc.array(fc.string({ unit: fc.constantFrom('a', 'é', '😀', '😁', '\n'), maxLength: 3 })),
  ],
  ['anything', fc.array(fc.string({ unit: 'binary', minLength: 1, maxLength: 3 })), fc.array(fc.string({ unit: 'binary' }))],
] as const

describe.each(cases)('%s', (_, stops, chunks) => {
  test('comes out as a naive search says, however it is cut', () => {
    fc.assert(
      fc.property(stops, chunks, fc.boolean(), (stops, chunks, units) => {
        const text = chunks.join('')
        const { pieces, stop } = run(stops, units ? text.split('') : chunks) // UTF-16 units: pairs arrive in halves
        const expected = naive(stops, text)
        expect(pieces.join('')).toBe(expected.text)
        expect(stop).toBe(expected.stop)
        for (const piece of pieces) expect(piece).not.toMatch(/\p{Surrogate}/u)
      }),
      { seed, numRuns: 2000 },
    )
  })

  test('withholds what may still become a stop, and nothing more', () => {
    fc.assert(
      fc.property(stops, chunks, (stops, chunks) => {
        const matcher = new StopMatcher(stops)
        let arrived = ''
        let emitted = ''
        for (const chunk of chunks) {
          const { text, stopped } = matcher.push(chunk)
          if (stopped) return
          arrived += chunk
          emitted += text
          expect(emitted).toBe(arrived.slice(0, arrived.length - withheld(stops, arrived)))
        }
      }),
      { seed, numRuns: 2000 },
    )
  })
})

test('the stop that is complete first wins', () => {
  expect(run(['abcdef', 'cd'], ['xabcdef'])).toEqual({ pieces: ['xab'], stop: 'cd' })
})

test('of stops that end together the longest wins', () => {
  expect(run(['d', 'bcd', 'cd'], ['ab', 'cde'])).toEqual({ pieces: ['a', ''], stop: 'bcd' })
})

test('a false beginning comes out whole', () => {
  expect(run(['\n\nUser:'], ['Hi\n', '\nU', 'ser', ' x']).pieces).toEqual(['Hi', '', '', '\n\nUser x', ''])
  expect(run(['aab'], ['aaa', 'a']).pieces.join('')).toBe('aaaa')
})

test('an unfinished beginning comes out at the end', () => {
  expect(run(['</s>'], ['a</s']).pieces).toEqual(['a', '</s'])
})

test('after a stop nothing more comes out', () => {
  const matcher = new StopMatcher(['.'])
  expect(matcher.push('a.b')).toEqual({ text: 'a', stopped: true, stop: '.' })
  expect(matcher.push('c')).toEqual({ text: '', stopped: true, stop: '.' })
  expect(matcher.end()).toBe('')
})

test('without stops all text passes at once', () => {
  expect(run([], ['a', '', 'b'])).toEqual({ pieces: ['a', '', 'b', ''] })
})

test.each([[''], ['\ud83d'], ['a\udc00']])('%j is refused', stop => {
  expect(() => new StopMatcher(['ok', stop])).toThrow(expect.objectContaining({ code: 'ERR_OPTION_STOP' }))
})

test('time is linear in the text, for stops that almost match everywhere', () => {
  const stops = [`${'a'.repeat(500)}b`, `${'ab'.repeat(200)}c`, ...Array.from({ length: 8 }, (_, i) => `${'a'.repeat(i + 1)}x`)]
  const matcher = new StopMatcher(stops)
  const start = performance.now()
  let length = 0
  for (let i = 0; i < 2 ** 18; i++) length += matcher.push(i % 600 === 599 ? 'ba' : 'aaaa'.slice(0, 1 + (i % 4))).text.length
  expect(length + matcher.end().length).toBeGreaterThan(0)
  expect(performance.now() - start).toBeLessThan(10000)
})
