// Recording: what it refuses and how it says so; who may use a tensor where; how the body ends.
import { afterAll, describe, expect, test } from '@jest/globals'
import type { BF16, DeviceTensor, Edits, F32, KvLayer, Recorder, Sampling, StepInputs } from '../../binding.d.ts'
import { open } from '../../lib/native.ts'
import { dim, hidden, kvOn, modelOn, samplingOn, shape, stepOn, thrown, written } from './small_model.ts'

const device = open('cpu', { threads: 1 })
const other = open('cpu', { threads: 1 })
afterAll(() => {
  for (const each of [device, other]) each[Symbol.dispose]()
})

const f32 = (...axes: number[]): F32 => device.tensor('f32', axes)
const bf16 = (...axes: number[]): BF16 => device.tensor('bf16', axes)
const i32 = (...axes: number[]) => device.tensor('i32', axes)
const random = (...axes: number[]) => device.random(axes, 1, 1)
const step = stepOn(device)
const sampling = samplingOn(device)
const kv = kvOn(device)
const freq = f32(4)
const cache = (...axes: number[]): KvLayer => ({ k: bf16(...axes), v: kv.v })
const stepWith = (fields: object): StepInputs => ({ ...step, ...fields })
const samplingWith = (fields: object): Sampling => ({ ...sampling, ...fields })
const editsWith = (fields: object): Edits => ({
  ...{ start: i32(3), end: i32(3), ids: i32(6), bias: f32(6), count: i32(6), newest: i32(3), maskRow: i32(3) },
  ...{ repetition: f32(3), frequency: f32(3), presence: f32(3) },
  ...fields,
})
const any = (value: unknown) => value as never
const width = (4 + 2 * 2) * 8
const [x, a, qkv, q, logits] = [f32(4, dim), bf16(4, dim), bf16(4, width), bf16(4, 4, 8), f32(3, 50)]

const foreign = other.tensor('f32', [4, dim])
const gone = f32(4, dim)
gone[Symbol.dispose]()
const ofProgram = device.record(op => ({ y: op.linear(a, random(dim, dim), { as: 'f32' }) })).outputs.y

type Bad = readonly [code: string, words: readonly (string | number)[], call: (op: Recorder) => unknown]
const S = 'ERR_SHAPE'
const D = 'ERR_DTYPE'
const A = 'ERR_ARGUMENT'
const bad: Record<string, readonly Bad[]> = {
  embed: [
    [S, ['table', '[32]', 'vocab', '2 axes'], op => op.embed(random(dim), step)],
    [S, ['step.source', '[5]', 'tokens', 4], op => op.embed(random(50, dim), stepWith({ source: i32(5) }))],
    [S, ['step.tokens', '[4, 1]', '1 axes'], op => op.embed(random(50, dim), stepWith({ tokens: i32(4, 1) }))],
    [D, ['step.tokens', 'f32', 'i32'], op => op.embed(random(50, dim), stepWith({ tokens: f32(4) }))],
    [D, ['step.previous', 'u32', 'i32'], op => op.embed(random(50, dim), stepWith({ previous: device.tensor('u32', [3]) }))],
    [A, ['step.queryStart', 'undefined', 'DeviceTensor'], op => op.embed(random(50, dim), stepWith({ queryStart: undefined }))],
    [A, ['step.tokens', 'array'], op => op.embed(random(50, dim), stepWith({ tokens: [1, 2] }))],
    [A, ['table', 'a DeviceTensor', 'a Weight'], op => op.embed(any(x), step)],
    [A, ['step', 'undefined', 'an object'], op => op.embed(random(50, dim), any(undefined))],
  ],
  rmsNorm: [
    [S, ['weight', '[2048]', 'dim', 4096], op => op.rmsNorm(f32(4, 4096), random(2048), 1e-5)],
    [S, ['weight', '[32, 32]', '1 axes'], op => op.rmsNorm(x, random(dim, dim), 1e-5)],
    [S, ['x', '[32]', '2 axes'], op => op.rmsNorm(f32(dim), random(dim), 1e-5)],
    [D, ['x', 'bf16', 'f32'], op => op.rmsNorm(any(a), random(dim), 1e-5)],
    [A, ['eps', '1e-5', 'a number'], op => op.rmsNorm(x, random(dim), any('1e-5'))],
    [A, ['eps', 'undefined', 'a number'], op => op.rmsNorm(x, random(dim), any(undefined))],
    [A, ['x', 'null', 'DeviceTensor'], op => op.rmsNorm(any(null), random(dim), 1e-5)],
    [A, ['x', 'another device'], op => op.rmsNorm(foreign, random(dim), 1e-5)],
    [A, ['weight', 'another device'], op => op.rmsNorm(x, other.random([dim], 1, 1), 1e-5)],
    ['ERR_DISPOSED', ['x', 'disposed'], op => op.rmsNorm(gone, random(dim), 1e-5)],
    [A, ['x', 'another program'], op => op.rmsNorm(ofProgram, random(dim), 1e-5)],
  ],
  linear: [
    [S, ['weight', '[48, 40]', 'in', 32], op => op.linear(a, random(hidden, 40))],
    [S, ['add', '[4, 40]', 'out', 48], op => op.linear(a, random(hidden, dim), { add: f32(4, 40) })],
    [S, ['add', '[5, 48]', 'tokens', 4], op => op.linear(a, random(hidden, dim), { add: f32(5, hidden) })],
    [S, ['weight', '[32]', '2 axes'], op => op.linear(a, random(dim))],
    [D, ['x', 'f32', 'bf16'], op => op.linear(any(x), random(hidden, dim))],
    [D, ['add', 'bf16', 'f32'], op => op.linear(a, random(hidden, dim), { add: any(bf16(4, hidden)) })],
    [A, ['as', 'bf16', "'f32'"], op => op.linear(a, random(hidden, dim), { as: any('bf16') })],
    [A, ['options', 'f32', 'an object'], op => op.linear(a, random(hidden, dim), any('f32'))],
  ],
  ropeAppend: [
    [S, ['qkv = 63', 'headDim = 8', 'heads'], op => op.ropeAppend(bf16(4, 63), kv, step, freq)],
    [S, ['qkv = 32', 'kvHeads = 2'], op => op.ropeAppend(bf16(4, 32), kv, step, freq)],
    [S, ['qkv = 56', 'kvHeads divides heads'], op => op.ropeAppend(bf16(4, 56), kv, step, freq)],
    [S, ['headDim/2 = 3', 'headDim = 8'], op => op.ropeAppend(qkv, kv, step, f32(3))],
    [S, ['kv.v', '[6, 2, 4, 8]', 'pages', 7], op => op.ropeAppend(qkv, cache(7, 2, 4, 8), step, freq)],
    [S, ['kv.v', '[6, 2, 4, 8]', 'pageSize', 5], op => op.ropeAppend(qkv, cache(6, 2, 5, 8), step, freq)],
    [S, ['step.positions', '[3]', 'tokens', 4], op => op.ropeAppend(qkv, kv, stepWith({ positions: i32(3) }), freq)],
    [S, ['step.slots', '[5]', 'tokens', 4], op => op.ropeAppend(qkv, kv, stepWith({ slots: i32(5) }), freq)],
    [D, ['kv.k', 'f32', 'bf16'], op => op.ropeAppend(qkv, { ...kv, k: any(f32(6, 2, 4, 8)) }, step, freq)],
    [D, ['invFreq', 'bf16', 'f32'], op => op.ropeAppend(qkv, kv, step, any(bf16(4)))],
    [A, ['kv.v', 'undefined'], op => op.ropeAppend(qkv, any({ k: kv.k }), step, freq)],
  ],
  attention: [
    [S, ['kv.k', '[6, 2, 4, 8]', 'headDim', 16], op => op.attention(bf16(4, 4, 16), kv, step)],
    [S, ['heads = 3', 'kvHeads = 2', 'divides'], op => op.attention(bf16(4, 3, 8), kv, step)],
    [S, ['q', '[4, 32]', '3 axes'], op => op.attention(a, kv, step)],
    [S, ['seqs+1 = 4', 'seqs = 2'], op => op.attention(q, kv, stepWith({ queryStart: i32(4) }))],
    [S, ['step.pageTable', '[3, 3]', 'seqs', 2], op => op.attention(q, kv, stepWith({ pageTable: i32(3, 3) }))],
    [D, ['step.kvLength', 'f32', 'i32'], op => op.attention(q, kv, stepWith({ kvLength: f32(2) }))],
    [A, ['kv', 'undefined', 'an object'], op => op.attention(q, any(undefined), step)],
  ],
  swiglu: [
    [S, ['2 hidden = 49', 'even'], op => op.swiglu(bf16(4, 49))],
    [S, ['gateUp', '[4, 4, 8]', '2 axes'], op => op.swiglu(q)],
    [D, ['gateUp', 'f32', 'bf16'], op => op.swiglu(any(x))],
    [A, ['gateUp', 'a Weight', 'DeviceTensor'], op => op.swiglu(any(random(4, 8)))],
  ],
  selectRows: [
    [S, ['step.outputs', '[3, 1]', '1 axes'], op => op.selectRows(x, stepWith({ outputs: i32(3, 1) }))],
    [D, ['step.outputs', 'u32', 'i32'], op => op.selectRows(x, stepWith({ outputs: device.tensor('u32', [3]) }))],
    [
      A,
      ['step.outputs', 'computed by this recording'],
      op => op.selectRows(x, stepWith({ outputs: op.sample(logits, sampling).ids })),
    ],
  ],
  adjust: [
    [S, ['edits.end', '[4]', 'out', 3], op => op.adjust(logits, editsWith({ end: i32(4) }))],
    [S, ['edits.bias', '[5]', 'edits', 6], op => op.adjust(logits, editsWith({ bias: f32(5) }))],
    [S, ['edits.newest', '[4]', 'out', 3], op => op.adjust(logits, editsWith({ newest: i32(4) }))],
    [S, ['edits.masks', '[1, 3]', 'words', 2], op => op.adjust(logits, editsWith({ masks: i32(1, 3) }))],
    [D, ['edits.masks', 'f32', 'i32'], op => op.adjust(logits, editsWith({ masks: f32(1, 2) }))],
    [D, ['edits.previous', 'u32', 'i32'], op => op.adjust(logits, editsWith({ previous: device.tensor('u32', [3]) }))],
    [A, ['edits.ids', 'undefined'], op => op.adjust(logits, editsWith({ ids: undefined }))],
    [A, ['edits', 'undefined', 'an object'], op => op.adjust(logits, any(undefined))],
  ],
  logprobs: [
    [S, ['sampled', '[2]', 'out', 3], op => op.logprobs(logits, i32(2), i32(3))],
    [S, ['given', '[3, 1]', '1 axes'], op => op.logprobs(logits, i32(3), i32(3, 1))],
    [D, ['sampled', 'f32', 'i32'], op => op.logprobs(logits, any(f32(3)), i32(3))],
    [A, ['given', 'undefined', 'DeviceTensor'], op => op.logprobs(logits, i32(3), any(undefined))],
  ],
  sample: [
    [S, ['sampling.temperature', '[4]', 'out', 3], op => op.sample(logits, samplingWith({ temperature: f32(4) }))],
    [S, ['sampling.seed', '[3]', '2 axes'], op => op.sample(logits, samplingWith({ seed: device.tensor('u32', [3]) }))],
    [S, ['2 = 3'], op => op.sample(logits, samplingWith({ seed: device.tensor('u32', [3, 3]) }))],
    [S, ['sampled = 2', 'out = 3'], op => op.sample(logits, samplingWith({ sampled: i32(2) }))],
    [D, ['sampling.topK', 'f32', 'i32'], op => op.sample(logits, samplingWith({ topK: f32(3) }))],
    [A, ['sampling.position', 'undefined'], op => op.sample(logits, samplingWith({ position: undefined }))],
    [A, ['sampling', '5', 'an object'], op => op.sample(logits, any(5))],
  ],
}

describe.each(Object.entries(bad))('%s', (name, calls) => {
  test.each(calls.map(([code, words, call]) => [code, words.join(' '), words, call] as const))(
    '%s: %s',
    (code, _, words, call) => {
      // A call that is refused changes nothing: the recording goes on and holds what it held.
      let found = { code: '', message: '' }
      const program = device.record(op => {
        const before = op.swiglu(a)
        found = thrown(() => call(op))
        return op.linear(before, random(hidden, dim / 2))
      })
      expect(found.code).toBe(code)
      expect(found.message).toMatch(new RegExp(`^${name}: `))
      for (const word of words.filter(word => word !== 'array')) expect(found.message).toContain(String(word))
      expect(program.cost.map(c => c.op).filter(op => op !== 'sample' || name !== 'selectRows')).toEqual(['swiglu', 'linear'])
    },
  )
})

test('the float32 test mode takes float32 activations', () => {
  const float = open('cpu', { activations: 'f32', threads: 1 })
  const message = thrown(() => float.record(op => op.swiglu(float.tensor('bf16', [4, 8]))))
  expect(message).toEqual({ code: 'ERR_DTYPE', message: 'swiglu: gateUp is bf16, expected f32' })
  float[Symbol.dispose]()
})

describe('how the body ends', () => {
  const swiglu = (op: Recorder) => op.swiglu(a)
  test('what it throws comes out, and nothing stays behind', () => {
    const mine = new RangeError('mine')
    let kept: BF16 | undefined
    let caught: unknown
    try {
      device.record(op => {
        kept = swiglu(op)
        throw mine
      })
    } catch (error) {
      caught = error
    }
    expect(caught).toBe(mine)
    expect(thrown(() => device.read(kept!, new Uint16Array(1)))).toMatchObject({ code: 'ERR_DISPOSED' })
  })
  test('a promise is refused', () => {
    const message = thrown(() => device.record(async op => swiglu(op)))
    expect(message).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('promise') })
  })
  test('the body is not a function', () => {
    expect(thrown(() => device.record(any(5)))).toMatchObject({ code: 'ERR_ARGUMENT' })
  })
  test('the recorder is dead afterwards', () => {
    let leaked: Recorder | undefined
    device.record(op => {
      leaked = op
    })
    expect(thrown(() => swiglu(leaked!))).toMatchObject({ code: 'ERR_CLOSED', message: expect.stringContaining('ended') })
  })
  test('a tensor that was not returned is gone; a returned one is known by name and shape', () => {
    let inner: BF16 | undefined
    const program = device.record(op => {
      inner = swiglu(op)
      return { deep: [{ y: op.linear(inner, random(8, dim / 2)) }], none: null, number: 5, weight: random(2) }
    })
    expect(thrown(() => device.read(inner!, new Uint16Array(1)))).toMatchObject({ code: 'ERR_DISPOSED' })
    const { deep, none, number } = program.outputs
    expect([deep[0]!.y.shape, deep[0]!.y.dtype, none, number]).toEqual([[4, 8], 'bf16', null, 5])
  })
  test('an empty body, and a body that returns itself', () => {
    const cyclic: { self?: unknown } = {}
    cyclic.self = cyclic
    expect(device.record(() => cyclic).outputs).toBe(cyclic)
    const empty = device.record(() => undefined)
    empty.run()
    expect(empty.cost).toEqual([])
  })
  test('a recording within a recording is one of its own', async () => {
    const program = device.record(outer => {
      const mine = swiglu(outer)
      const inner = device.record(op => {
        expect(thrown(() => op.linear(mine, random(8, dim / 2)))).toMatchObject({
          code: 'ERR_ARGUMENT',
          message: expect.stringContaining('another recording'),
        })
        return { y: swiglu(op) }
      })
      expect(thrown(() => device.record(() => mine))).toMatchObject({ message: expect.stringContaining('another recording') })
      expect(thrown(() => device.read(mine, new Uint16Array(1)))).toMatchObject({ code: 'ERR_ARGUMENT' })
      inner.run()
      return { y: mine, inner: inner.outputs.y as DeviceTensor }
    })
    program.run()
    await device.read(program.outputs.y, new Uint16Array(64))
    await device.read(program.outputs.inner, new Uint16Array(64))
  })
  test('a disposed program is not run, and its results are kept until they are disposed too', async () => {
    const input = written(device, 'bf16', [1, 2], [0x3f80, 0x3f80])
    const program = device.record(op => ({ y: op.swiglu(input) }))
    program.run()
    const { y } = program.outputs
    program[Symbol.dispose]()
    program[Symbol.dispose]()
    expect(thrown(() => program.run())).toMatchObject({ code: 'ERR_DISPOSED' })
    expect(thrown(() => program.cost)).toMatchObject({ code: 'ERR_DISPOSED' })
    expect([...(await device.read(y, new Uint16Array(1)))]).toEqual([0x3f3b]) // 1 / (1 + e^-1) = 0.731
    y[Symbol.dispose]()
    expect(thrown(() => device.read(y, new Uint16Array(1)))).toMatchObject({ code: 'ERR_DISPOSED' })
  })
  test('inputs that are disposed after recording stay alive for the program', async () => {
    const input = written(device, 'bf16', [1, 2], [0x3f80, 0x3f80])
    const program = device.record(op => ({ y: op.swiglu(input) }))
    input[Symbol.dispose]()
    program.run()
    expect([...(await device.read(program.outputs.y, new Uint16Array(1)))]).toEqual([0x3f3b])
  })
})

test('the classes cannot be constructed', () => {
  for (const made of [device, x, random(2), device.record(() => 0)]) {
    const Made = made.constructor as new () => unknown
    expect(thrown(() => new Made())).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('made by open()') })
  }
})

test('the sizes of the small model fit together', () => {
  const model = modelOn(device, 1)
  expect(model.layers[0]!.wqkv.shape).toEqual([width, dim])
  expect(step.pageTable.shape).toEqual([shape.seqs, shape.maxPages])
})
