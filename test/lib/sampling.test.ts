import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { InputError } from '../../lib/errors.ts'
import { type SamplingOptions, samplingParameters } from '../../lib/sampling.ts'

const greedy = { doSample: false, temperature: 0 }
const parameters = (options: object, defaults = greedy) => samplingParameters(options as SamplingOptions, defaults)

describe('defaults', () => {
  test('greedy, everything kept', () => {
    expect(parameters({ seed: 0 })).toEqual({ temperature: 0, topP: 1, topK: 0, minP: 0, seed: [0, 0] })
  })

  test("the model's own, each replaced by what the caller says", () => {
    const model = { doSample: true, temperature: 0.6, topP: 0.9, topK: 50, minP: 0.1 }
    const all = { temperature: 0.6, topP: 0.9, topK: 50, minP: 0.1, seed: [7, 0] }
    expect(parameters({ seed: 7 }, model)).toEqual(all)
    for (const one of [{ temperature: 0 }, { topP: 1 }, { topK: 0 }, { minP: 0 }]) {
      expect(parameters({ seed: 7, ...one }, model)).toEqual({ ...all, ...one })
    }
    expect(parameters({ seed: 7, temperature: undefined, topP: undefined }, model)).toEqual(all)
  })
})

describe('seeds', () => {
  test.each<[number | bigint, readonly [number, number]]>([
    [0, [0, 0]],
    [-0, [0, 0]],
    [1, [1, 0]],
    [-1, [0xffffffff, 0xffffffff]],
    [2 ** 32, [0, 1]],
    [2 ** 53 - 1, [0xffffffff, 0x1fffff]],
    [5n, [5, 0]],
    [(1n << 64n) - 1n, [0xffffffff, 0xffffffff]],
    [0x0123_4567_89ab_cdefn, [0x89abcdef, 0x01234567]],
  ])('%p', (seed, words) => {
    expect(parameters({ seed }).seed).toEqual(words)
  })

  test('every 64-bit number has words of its own, the same as number and as bigint', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), seed => {
        const [low, high] = parameters({ seed }).seed
        expect(BigInt(low) + (BigInt(high) << 32n)).toBe(seed)
        const small = seed >> 11n
        expect(parameters({ seed: Number(small) }).seed).toEqual(parameters({ seed: small }).seed)
      }),
      { seed: 3 },
    )
  })

  test('random without one', () => {
    const seeds = Array.from({ length: 50 }, () => parameters({}).seed.join())
    expect(new Set(seeds).size).toBe(50)
  })
})

describe('what is refused names the option, what was found and what is possible', () => {
  const wrongNumbers = [
    Number.NaN,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    -1,
    '0.5',
    [0.5],
    {},
    true,
    1n,
    Symbol('x'),
  ]
  const wrong: [string, readonly unknown[], string][] = [
    ['temperature', [...wrongNumbers, -1e-9, 1e7], 'a number from 0'],
    ['topP', [...wrongNumbers, 0, 1.01], 'a number above 0 and at most 1'],
    ['minP', [...wrongNumbers, 1.01], 'a number from 0 to 1'],
    ['topK', [...wrongNumbers, 1.5, 2 ** 31], 'a whole number, 0 for no limit'],
    [
      'seed',
      [Number.NaN, 1.5, 2 ** 53, Number.POSITIVE_INFINITY, '1', '', null, true, {}, [1]],
      'a whole number below 2^53, or a',
    ],
  ]
  test.each(wrong.flatMap(([name, values, expected]) => values.map(value => ({ name, value, expected }))))(
    '$name: $value',
    ({ name, value, expected }) => {
      let error: InputError | undefined
      try {
        parameters({ [name]: value })
      } catch (thrown) {
        error = thrown as InputError
      }
      expect(error).toBeInstanceOf(InputError)
      expect(error!.code).toBe('ERR_OPTION_RANGE')
      expect(error!.message).toMatch(new RegExp(`^${name} is .*, expected `))
      expect(error!.message).toContain(expected)
      if (typeof value === 'number') expect(error!.message).toContain(String(value))
    },
  )

  test('the bounds themselves are possible', () => {
    for (const temperature of [0, 1e-9, 1e6]) expect(parameters({ temperature }).temperature).toBe(temperature)
    for (const topP of [Number.MIN_VALUE, 1]) expect(parameters({ topP }).topP).toBe(topP)
    for (const minP of [0, 1]) expect(parameters({ minP }).minP).toBe(minP)
    for (const topK of [0, 1, 2 ** 31 - 1]) expect(parameters({ topK }).topK).toBe(topK)
  })
})
