/** Recording: what is refused and how it is said, memory of results, and what recording and replaying cost JavaScript. */
import { afterAll, describe, expect, test } from '@jest/globals'
import type { BF16, DeviceTensor, F32, Recorder, StepInputs, Weight } from '../../binding.d.ts'
import { open } from '../../lib/native.ts'

const device = open('cpu', { threads: 2 })
const other = open('cpu', { threads: 1 })
afterAll(() => {
  device[Symbol.dispose]()
  other[Symbol.dispose]()
})

const i32 = (...values: number[]) => {
  const tensor = device.tensor('i32', [values.length])
  device.write(tensor, new Int32Array(values))
  return tensor
}

/** Inputs of `tokens` rows of one sequence. */
function stepOf(tokens: number): StepInputs {
  const rows = Array.from({ length: tokens }, (_, i) => i)
  const pageTable = device.tensor('i32', [1, 1])
  return {
    tokens: i32(...rows.map(i => i % 8)),
    source: i32(...rows.map(() => -1)),
    positions: i32(...rows),
    slots: i32(...rows),
    queryStart: i32(0, tokens),
    kvLength: i32(tokens),
    pageTable,
    outputs: i32(tokens - 1),
  }
}

const dim = 64
const table = device.random([8, dim], 1, 1)
const norm = device.random([dim], 2, 1)
const square = device.random([dim, dim], 3, 0.1)
const step = stepOf(4)
const caught = (body: () => unknown): Error & { code?: string } => {
  try {
    body()
  } catch (error) {
    return error as Error
  }
  throw new Error('nothing was thrown')
}

describe('refused', () => {
  const x = (op: Recorder) => op.embed(table, step)
  const cases: [name: string, body: (op: Recorder) => unknown, code: string, message: RegExp][] = [
    [
      'a norm of another size',
      op => op.rmsNorm(x(op), device.random([32], 1, 1), 1e-5),
      'ERR_SHAPE',
      /rmsNorm: weight is \[32\].*dim.*64.*x \[4, 64\]/,
    ],
    [
      'a matrix of other columns',
      op => op.linear(op.rmsNorm(x(op), norm, 1e-5), device.random([8, 48], 1, 1)),
      'ERR_SHAPE',
      /linear: weight is \[8, 48\].*in is 64/,
    ],
    [
      'a residual of other rows',
      op => op.linear(op.rmsNorm(x(op), norm, 1e-5), square, { add: device.tensor('f32', [5, dim]) }),
      'ERR_SHAPE',
      /linear: add is \[5, 64\].*tokens is 4/,
    ],
    [
      'a matrix for a vector',
      op => op.rmsNorm(x(op), square, 1e-5),
      'ERR_SHAPE',
      /rmsNorm: weight is \[64, 64\], expected \[dim\]/,
    ],
    ['float32 for bf16', op => op.linear(x(op) as unknown as BF16, square), 'ERR_DTYPE', /linear: x is f32, expected bf16/],
    [
      'ids for numbers',
      op => op.rmsNorm(step.tokens as unknown as F32, norm, 1e-5),
      'ERR_DTYPE',
      /rmsNorm: x is i32, expected f32/,
    ],
    [
      'a tensor for a weight',
      op => op.rmsNorm(x(op), x(op) as unknown as Weight, 1e-5),
      'ERR_ARGUMENT',
      /rmsNorm: weight is a DeviceTensor, expected a Weight/,
    ],
    [
      'a weight for a tensor',
      op => op.rmsNorm(norm as unknown as F32, norm, 1e-5),
      'ERR_ARGUMENT',
      /rmsNorm: x is a Weight, expected a DeviceTensor/,
    ],
    ['nothing', op => op.rmsNorm(undefined as unknown as F32, norm, 1e-5), 'ERR_ARGUMENT', /rmsNorm: x is undefined/],
    [
      'a text for a number',
      op => op.rmsNorm(x(op), norm, 'small' as unknown as number),
      'ERR_ARGUMENT',
      /rmsNorm: eps is small, expected a number/,
    ],
    [
      'an unknown output type',
      op => op.linear(op.rmsNorm(x(op), norm, 1e-5), square, { as: 'f16' } as unknown as { as: 'f32' }),
      'ERR_ARGUMENT',
      /linear: as is f16/,
    ],
    [
      'an odd gate',
      op => op.swiglu(op.linear(op.rmsNorm(x(op), norm, 1e-5), device.random([7, dim], 1, 1))),
      'ERR_SHAPE',
      /swiglu.*2 hidden = 7/,
    ],
    ['no step', op => op.embed(table, {} as StepInputs), 'ERR_ARGUMENT', /embed: step\.tokens is undefined/],
    [
      'inputs of other rows',
      op => op.embed(table, { ...step, source: i32(-1, -1) }),
      'ERR_SHAPE',
      /embed: step\.source is \[2\].*tokens is 4/,
    ],
    [
      'a weight of another device',
      op => op.embed(other.random([8, dim], 1, 1), step),
      'ERR_ARGUMENT',
      /embed: table belongs to another device/,
    ],
    [
      'a tensor of another device',
      op => op.embed(table, { ...step, tokens: other.tensor('i32', [4]) }),
      'ERR_ARGUMENT',
      /embed: step\.tokens belongs to another device/,
    ],
    [
      'heads that do not divide',
      op => {
        const cache = () => device.tensor('bf16', [1, 3, 4, 8]) as BF16
        return op.ropeAppend(
          op.linear(op.rmsNorm(x(op), norm, 1e-5), square),
          { k: cache(), v: cache() },
          step,
          device.tensor('f32', [4]),
        )
      },
      'ERR_SHAPE',
      /ropeAppend.*kvHeads divides heads/,
    ],
  ]
  test.each(cases)('%s', (_, body, code, message) => {
    const error = caught(() => device.record(body))
    expect(error.code).toBe(code)
    expect(error.message).toMatch(message)
  })

  test('a body that throws: its error comes out, and the device goes on', () => {
    const own = new Error('mine')
    expect(
      caught(() =>
        device.record(() => {
          throw own
        }),
      ),
    ).toBe(own)
    expect(device.record(op => op.embed(table, step)).outputs.shape).toEqual([4, dim])
  })

  test('a body that is not a function, or returns a promise', () => {
    expect(caught(() => device.record(5 as unknown as () => unknown)).message).toMatch(/body is not a function/)
    expect(caught(() => device.record(async () => {})).message).toMatch(/body returned a promise/)
  })

  test('a refused call appends nothing', () => {
    const program = device.record(op => {
      const h = op.embed(table, step)
      caught(() => op.rmsNorm(h, device.random([32], 1, 1), 1e-5))
      return op.rmsNorm(h, norm, 1e-5)
    })
    expect(program.cost.map(cost => cost.op)).toEqual(['embed', 'rmsNorm'])
  })

  test('the recorder, and what was not returned, after the end; tensors of another recording', () => {
    let kept: Recorder | undefined
    let inner: F32 | undefined
    device.record(op => {
      kept = op
      inner = op.embed(table, step)
      return op.rmsNorm(inner, norm, 1e-5)
    })
    expect(caught(() => kept!.embed(table, step)).code).toBe('ERR_CLOSED')
    expect(caught(() => device.record(op => op.rmsNorm(inner!, norm, 1e-5))).code).toBe('ERR_DISPOSED')
    expect(
      caught(() =>
        device.record(outer => {
          const theirs = outer.embed(table, step)
          return device.record(op => op.rmsNorm(theirs, norm, 1e-5))
        }),
      ).message,
    ).toMatch(/belongs to another recording/)
  })

  test('a result of another program, whose address changes', () => {
    const first = device.record(op => op.embed(table, step))
    expect(caught(() => device.record(op => op.rmsNorm(first.outputs, norm, 1e-5))).message).toMatch(/result of another program/)
  })

  test('constructing the classes', () => {
    const Device = device.constructor as new () => unknown
    expect(caught(() => new Device()).message).toMatch(/made by open/)
  })
})

const read = async (tensor: DeviceTensor, count: number) => device.read(tensor, new Float32Array(count))

test('step n can be read while n + 1 runs: results have two copies', async () => {
  const inputs = stepOf(4)
  const program = device.record(op => op.embed(table, inputs))
  program.run()
  const first = read(program.outputs, 4 * dim)
  device.write(inputs.tokens, new Int32Array([7, 6, 5, 4]))
  program.run()
  const second = read(program.outputs, 4 * dim)
  const [a, b] = await Promise.all([first, second])
  device.write(inputs.tokens, new Int32Array([0, 1, 2, 3]))
  program.run()
  expect(await read(program.outputs, 4 * dim)).toEqual(a)
  expect(b).not.toEqual(a)
  expect(b.subarray(3 * dim)).toEqual(await rowOf(4))
})

async function rowOf(id: number): Promise<Float32Array> {
  const inputs = { ...stepOf(1), tokens: i32(id) }
  const program = device.record(op => op.embed(table, inputs))
  program.run()
  return read(program.outputs, dim)
}

test('values that share the arena do not disturb each other: every value kept gives the same as none kept', async () => {
  const chain = (op: Recorder, keep: DeviceTensor[]) => {
    let x = op.embed(table, step)
    for (let i = 0; i < 12; i++) {
      const h = op.rmsNorm(x, norm, 1e-5)
      const g = op.linear(h, square)
      const y = op.linear(g, square, { add: x })
      keep.push(x, h, g)
      x = i % 3 === 2 ? op.linear(h, square, { add: y }) : y
    }
    return x
  }
  const lean = device.record(op => chain(op, []))
  const all = device.record(op => {
    const keep: DeviceTensor[] = []
    return { last: chain(op, keep), keep }
  })
  expect(lean.memory).toBeLessThan(all.memory / 4)
  lean.run()
  all.run()
  const [a, b] = [await read(lean.outputs, 4 * dim), await read(all.outputs.last, 4 * dim)]
  expect(a.every(Number.isFinite)).toBe(true)
  expect(a).toEqual(b)
})

test('cost counts the weights once and two operations a weight and row', () => {
  const { cost } = device.record(op => op.linear(op.rmsNorm(op.embed(table, step), norm, 1e-5), square))
  expect(cost[2]).toEqual({ op: 'linear', bytes: dim * dim * 2 + 2 * (4 * dim * 2), flops: 2 * 4 * dim * dim })
})

/** 32 layers of the 8B program's commands (293), in small. */
function deep(op: Recorder, cache: BF16, frequencies: F32): F32 {
  let x = op.embed(table, step)
  for (let layer = 0; layer < 32; layer++) {
    const kv = { k: cache, v: cache }
    const q = op.ropeAppend(op.linear(op.rmsNorm(x, norm, 1e-5), wide), kv, step, frequencies)
    x = op.linear(op.attention(q, kv, step), square, { add: x })
    x = op.linear(op.swiglu(op.linear(op.rmsNorm(x, norm, 1e-5), wide)), square, { add: x })
  }
  return x
}
const wide = device.random([2 * dim, dim], 4, 0.1)

test('recording the commands of an 8B takes under 10 ms, running them one call that does not wait', async () => {
  const cache = device.tensor('bf16', [1, 2, 4, 16]) as BF16
  const frequencies = device.tensor('f32', [8]) as F32
  const times = Array.from({ length: 5 }, () => {
    const begin = performance.now()
    device.record(op => deep(op, cache, frequencies))
    return performance.now() - begin
  })
  expect(Math.min(...times)).toBeLessThan(10)

  // A program of some hundred milliseconds: the call returns long before it is done.
  const large = device.random([8192, dim], 5, 0.1)
  const back = device.random([dim, 8192], 6, 0.1)
  const rows = stepOf(64)
  const program = device.record(op => {
    let h = op.rmsNorm(op.embed(table, rows), norm, 1e-5)
    for (let i = 0; i < 60; i++) h = op.linear(op.linear(h, large), back)
    return h
  })
  const begin = performance.now()
  program.run()
  const returned = performance.now() - begin
  await device.read(program.outputs, new Uint16Array(1))
  const done = performance.now() - begin
  expect(returned).toBeLessThan(done / 5)
})
