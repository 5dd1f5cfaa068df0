import { describe, expect, test } from '@jest/globals'
import { builtinConfigs } from '../../lib/config.ts'
import { InputError } from '../../lib/errors.ts'
import { type GenerateOptions, type LoadOptions, limitsFor, loadOptions, logitsOptions, request } from '../../lib/options.ts'

const config = builtinConfigs['llama3-8b']
const generate = (options: unknown, room = 100) => request(options as GenerateOptions, config, room)
const load = (options: unknown) => loadOptions(options as LoadOptions)
const circular: unknown[] = []
circular.push(circular)
const notWhole = [
  0,
  -1,
  1.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  2 ** 53,
  '1',
  1n,
  {},
  null,
  true,
  Symbol('x'),
  Object.create(null),
]

interface Wrong {
  name: string
  value: unknown
  code: string
  expected: string
}
const table = (name: string, values: readonly unknown[], code: string, expected: string): Wrong[] =>
  values.map(value => ({ name, value, code: `ERR_OPTION_${code}`, expected }))

function refused(run: () => unknown, { name, value, code, expected }: Wrong): void {
  let error: InputError | undefined
  try {
    run()
  } catch (thrown) {
    error = thrown as InputError
  }
  expect(error).toBeInstanceOf(InputError)
  expect(error!.name).toBe('InputError')
  expect(error!.code).toBe(code)
  expect(error!.message.startsWith(`${name} is `)).toBe(true)
  if (typeof value === 'number') expect(error!.message).toContain(`${name} is ${value}`)
  expect(error!.message).toContain(`expected ${expected}`)
  expect(error!.message.length).toBeLessThan(300)
}

const signals = ['abort', {}, null, new AbortController(), new EventTarget(), 1]
describe('generate', () => {
  test.each([
    ...table('maxTokens', notWhole, 'RANGE', 'a whole number from 1 on'),
    ...table('signal', signals, 'TYPE', 'an AbortSignal'),
    ...table('ignoreEos', ['false', 0, 1, null, {}], 'TYPE', 'true or false'),
    ...table('temperature', [Number.NaN, -1, 1000001, '1'], 'RANGE', 'a number from 0 (greedy) to 1000000'),
    ...table('seed', [0.5, '1'], 'RANGE', 'a whole number below 2^53, or a bigint'),
    ...table('seed', [2n ** 64n, -(2n ** 63n) - 1n], 'RANGE', 'at most 64 bits'),
    ...table(
      'stop',
      [
        5,
        1n,
        true,
        null,
        {},
        [5],
        [1n],
        ['a', null],
        circular,
        new Set(['a']),
        new Array(17).fill('a'),
        'x'.repeat(1025),
        ['x'.repeat(1025)],
      ],
      'STOP',
      'a string or at most 16 of them',
    ),
    ...table(
      'stopTokens',
      [
        5,
        null,
        'a',
        new Array(1),
        [-1],
        [1.5],
        [Number.NaN],
        ['5'],
        [1n],
        [null],
        [128256],
        circular,
        new Set([5]),
        new Array(65).fill(5),
      ],
      'RANGE',
      'at most 64 whole numbers from 0 to 128255',
    ),
  ])('$name: $value', wrong => refused(() => generate({ [wrong.name]: wrong.value }), wrong))

  test.each([
    [null, 'ERR_OPTION_TYPE', 'the options of generate are null, expected an object'],
    [5, 'ERR_OPTION_TYPE', 'the options of generate are 5'],
    ['max', 'ERR_OPTION_TYPE', "the options of generate are 'max'"],
    [{ max_tokens: 5 }, 'ERR_OPTION_UNKNOWN', 'generate has no option max_tokens; there are maxTokens, '],
    [{ maxTokens: 5, top_p: undefined }, 'ERR_OPTION_UNKNOWN', 'generate has no option top_p'],
    [[5], 'ERR_OPTION_UNKNOWN', 'generate has no option 0'],
  ])('options that are %p', (options, code, message) => {
    const error = expect.objectContaining({ name: 'InputError', code, message: expect.stringContaining(message) })
    expect(() => generate(options)).toThrow(error as never)
  })

  test('minTokens beyond the end', () => {
    const wrong = (value: number, least: string) => ({ name: 'minTokens', value, code: 'ERR_OPTION_RANGE', expected: least })
    refused(() => generate({ maxTokens: 5, minTokens: 6 }), wrong(6, 'at most 5 (maxTokens)'))
    refused(() => generate({ maxTokens: 50, minTokens: 34 }, 33), wrong(34, 'at most 33 (what the context has room for)'))
    refused(() => generate({ minTokens: 101 }), wrong(101, 'at most 100 (what the context has room for)'))
  })

  test('every option may be undefined, and is filled in', () => {
    const names = ['maxTokens', 'stop', 'stopTokens', 'ignoreEos', 'signal', 'temperature', 'topP', 'topK', 'minP', 'seed']
    const filled = generate(Object.fromEntries(names.map(name => [name, undefined])))
    expect(filled).toMatchObject({ maxTokens: 100, stop: [], signal: undefined })
    expect(filled.sampling).toMatchObject({ temperature: 0.6, topP: 0.9, topK: 0, minP: 0 })
    expect([...filled.stopTokens]).toEqual([128001, 128009])
  })

  test('a cache that is larger than the memory is refused', () => {
    const message = expect.stringContaining(
      'a key/value cache of 8192 tokens takes 1073741824 bytes, and the device has 1073741823',
    )
    const error = { name: 'DeviceError', code: 'ERR_OUT_OF_MEMORY', message }
    expect(() => limitsFor(config, {}, { memory: 8192 * 131072 - 1 })).toThrow(expect.objectContaining(error) as never)
  })

  test('what is given', () => {
    const { signal } = new AbortController()
    expect(generate({ maxTokens: 7, stop: 'a', signal })).toMatchObject({ maxTokens: 7, stop: ['a'], signal })
    expect(generate({ maxTokens: 1e9 }, 33).maxTokens).toBe(33) // the end of the context
    expect(generate({ maxTokens: 1e9, minTokens: 33 }, 33).minTokens).toBe(33)
    expect(generate({ stop: ['a', 'b'] }).stop).toEqual(['a', 'b'])
    expect([...generate({ stopTokens: [0, 128255] }).stopTokens]).toEqual([128001, 128009, 0, 128255])
    expect([...generate({ ignoreEos: true, stopTokens: [5] }).stopTokens]).toEqual([5])
    expect([...generate({ ignoreEos: false }).stopTokens]).toEqual([128001, 128009])
  })
})

describe('logits', () => {
  test.each(signals)('signal: %p', signal => {
    const wrong = { name: 'signal', value: signal, code: 'ERR_OPTION_TYPE', expected: 'an AbortSignal' }
    refused(() => logitsOptions({ signal } as never), wrong)
  })
  test.each([
    [null, 'ERR_OPTION_TYPE', 'the options of logits are null, expected an object'],
    [{ temperature: 1 }, 'ERR_OPTION_UNKNOWN', 'logits has no option temperature; there are signal'],
  ])('options that are %p', (options, code, message) => {
    const error = expect.objectContaining({ name: 'InputError', code, message: expect.stringContaining(message) })
    expect(() => logitsOptions(options as never)).toThrow(error as never)
  })
})

describe('load', () => {
  test.each([
    ...['contextLength', 'maxBatchTokens', 'pageSize'].flatMap(name =>
      table(name, notWhole, 'RANGE', 'a whole number from 1 on'),
    ),
    ...table('threads', [...notWhole, 1025], 'RANGE', 'a whole number from 1 to 1024'),
    ...table('maxSequences', [...notWhole, 4097], 'RANGE', 'a whole number from 1 to 4096'),
    ...table('kvCacheTokens', [...notWhole, 2 ** 31], 'RANGE', `a whole number from 1 to ${2 ** 30}`),
    ...table('device', [0, null, {}, ['cpu']], 'TYPE', "'auto', 'cpu' or 'cuda:N'"),
    ...table('activations', ['f16', 'F32', 32, null], 'TYPE', "'bf16' or 'f32'"),
    ...table('onProgress', ['x', 1, {}, null], 'TYPE', 'a function'),
    ...table('signal', signals, 'TYPE', 'an AbortSignal'),
  ])('$name: $value', wrong => refused(() => load({ [wrong.name]: wrong.value }), wrong))

  test('an option there is not', () => {
    const error = { code: 'ERR_OPTION_UNKNOWN', message: expect.stringMatching(/^load has no option gpu; there are device, /) }
    expect(() => load({ gpu: 0 })).toThrow(expect.objectContaining(error) as never)
  })
})

describe('sizes of the engine', () => {
  test('defaults: the whole context, 16 sequences, pages of 16 tokens, a quarter of the memory', () => {
    const bytes = 131072 // of a token, DESIGN.md section 7
    const sizes = {
      context: 8192,
      maxSequences: 16,
      maxBatchTokens: 256,
      maxQueue: 4096,
      pageSize: 16,
      prefixCache: true,
      pipeline: true,
    }
    expect(limitsFor(config, {}, { memory: 2 ** 37 })).toEqual({ ...sizes, pages: (16 * 8192) / 16 })
    expect(limitsFor(config, {}, { memory: 4 * bytes * 10000 })).toEqual({ ...sizes, pages: 625 })
    expect(limitsFor(config, {}, { memory: 8192 * bytes })).toEqual({ ...sizes, pages: 512 }) // one context at least
    expect(limitsFor(config, { activations: 'f32' }, { memory: 4 * bytes * 20000 })).toEqual({ ...sizes, pages: 625 })
  })

  test('defaults on a GPU: 256 sequences, and what the weights leave of the memory but for a tenth of it', () => {
    const sizes = { maxSequences: 256, maxBatchTokens: 2048 }
    const pagesOf = (memory: number, free: number, options = {}) =>
      limitsFor(config, options, { memory: memory * 131072, free: free * 131072, gpu: true })
    expect(pagesOf(160_000, 80_000)).toMatchObject({ ...sizes, pages: (80_000 - 16_000) / 16 })
    expect(pagesOf(1e9, 9e8)).toMatchObject({ ...sizes, pages: (256 * 8192) / 16 }) // full contexts for all
    for (const free of [0, 20_000]) expect(pagesOf(160_000, free).pages).toBe(512) // one context at least
    expect(pagesOf(160_000, 80_000, { kvCacheTokens: 100_000 }).pages).toBe(6250)
  })

  test('what is given', () => {
    const given = { contextLength: 100, maxSequences: 300, maxBatchTokens: 400, pageSize: 7, kvCacheTokens: 50 }
    const limits = { context: 100, maxSequences: 300, maxBatchTokens: 400, pageSize: 7, pages: 8 }
    expect(limitsFor(config, given)).toMatchObject(limits)
    expect(limitsFor(config, { contextLength: 100, pageSize: 1e6 }).pageSize).toBe(100) // one page a sequence
    expect(limitsFor(config, { contextLength: 100, maxSequences: 300 }).maxBatchTokens).toBe(300)
  })

  test.each([
    [{ contextLength: 8193 }, 'contextLength is 8193, expected a whole number from 1 to 8192'],
    [{ maxBatchTokens: 15 }, 'maxBatchTokens is 15, expected at least maxSequences (16)'],
  ])('%p is refused', (options, message) => {
    const error = { name: 'InputError', code: 'ERR_OPTION_RANGE', message: expect.stringContaining(message) }
    expect(() => limitsFor(config, options)).toThrow(expect.objectContaining(error) as never)
  })
})
