// Programs: results in two copies, the arena, cost, and the time that recording and running take.
import { afterAll, describe, expect, test } from '@jest/globals'
import type { BF16, DeviceTensor, F32, Recorder } from '../../binding.d.ts'
import { forward } from '../../lib/forward.ts'
import { open } from '../../lib/native.ts'
import { Random } from '../ops/numbers.ts'
import { dim, kvOn, modelOn, samplingOn, shape, stepOn, written } from './small_model.ts'

const device = open('cpu', { threads: 2 })
afterAll(() => device[Symbol.dispose]())
const bits = async (tensor: DeviceTensor) => {
  const bytes = tensor.shape.reduce((n, axis) => n * axis, tensor.dtype === 'bf16' ? 2 : 4)
  return Buffer.from(await device.read(tensor, new Uint8Array(bytes))).toString('hex')
}

describe('results have two copies', () => {
  const one = 0x3f80
  /** y = row `token` of the table, whose values are the token. */
  function counting() {
    const tokens = written(device, 'i32', [1], [0])
    const fields = { tokens, source: written(device, 'i32', [1], [-1]), queryStart: written(device, 'i32', [2], [0, 1]) }
    const table = device.random([64, 8], 1, 1)
    const program = device.record(op => ({ y: op.embed(table, fields as never) }))
    return { program, set: (token: number) => device.write(tokens, Int32Array.of(token)) }
  }
  test('step n is read while n + 1 runs, without waiting in between', async () => {
    const { program, set } = counting()
    const expected: string[] = []
    for (let token = 0; token < 10; token++) {
      set(token)
      program.run()
      expected.push(await bits(program.outputs.y)) // one by one
    }
    expect(new Set(expected).size).toBe(10)
    const pending: Promise<string>[] = []
    for (let token = 0; token < 10; token++) {
      set(token)
      program.run()
      pending.push(bits(program.outputs.y)) // all enqueued at once
    }
    expect(await Promise.all(pending)).toEqual(expected)
  })
  test('the result of a step stays while the next one runs, and is replaced by the one after', async () => {
    const { program, set } = counting()
    const runs = async (token: number) => {
      set(token)
      program.run()
    }
    await runs(1)
    const first = await bits(program.outputs.y)
    await runs(2)
    const second = await bits(program.outputs.y)
    expect(second).not.toBe(first)
    expect(await bits(program.outputs.y)).toBe(second) // reading does not move on
    await runs(1)
    expect(await bits(program.outputs.y)).toBe(first)
  })
  test('before the first run a result is zero', async () => {
    expect(await bits(counting().program.outputs.y)).toBe('00'.repeat(32))
  })
  test('a result that later commands read, and a result of results', async () => {
    const input = written(device, 'bf16', [1, 4], [one, 2 * one, one, one])
    const identity = device.random([2, 2], 5, 1)
    const program = device.record(op => {
      const y = op.swiglu(input)
      return { y, z: op.linear(y, identity), again: y }
    })
    for (let i = 0; i < 3; i++) {
      program.run()
      const [y, z] = await Promise.all([bits(program.outputs.y), bits(program.outputs.z)])
      const alone = device.record(op => ({ z: op.linear(op.swiglu(input), identity) }))
      alone.run()
      expect([z, await bits(program.outputs.again)]).toEqual([await bits(alone.outputs.z), y])
    }
  })
})

describe('the arena', () => {
  const rows = 5
  const widths = [8, 24, 40] as const
  interface Value {
    tensor: F32 | BF16
    kind: 'f32' | 'bf16'
    width: number
  }
  /** A command with the values that it takes, by number; chosen once, recorded in two ways. */
  interface Choice {
    inputs: number[]
    apply: (op: Recorder, inputs: DeviceTensor[]) => DeviceTensor
    kind: 'f32' | 'bf16'
    width: number
  }
  function choose(random: Random, values: readonly Omit<Value, 'tensor'>[]): Choice {
    const of = (kind: string, width?: number) => {
      const found = [...values.keys()].filter(
        i => values[i]!.kind === kind && (width === undefined || values[i]!.width === width),
      )
      return found.length ? random.pick(found) : -1
    }
    const out = random.pick(widths)
    const seed = random.int(0, 1000)
    const any = of('bf16')
    const from = values[any]!.width
    const add = of('f32', out)
    const norm = of('f32')
    const linear = () => device.random([out, from], seed, 0.3)
    const choices: Choice[] = [
      { inputs: [any], apply: (op, [x]) => op.linear(x as BF16, linear()), kind: 'bf16', width: out },
      { inputs: [any], apply: (op, [x]) => op.linear(x as BF16, linear(), { as: 'f32' }), kind: 'f32', width: out },
      { inputs: [any, add], apply: (op, [x, y]) => op.linear(x as BF16, linear(), { add: y as F32 }), kind: 'f32', width: out },
      { inputs: [any], apply: (op, [x]) => op.swiglu(x as BF16), kind: 'bf16', width: from / 2 },
      {
        inputs: [norm],
        apply: (op, [x]) => op.rmsNorm(x as F32, device.random([values[norm]!.width], seed, 1), 1e-5),
        kind: 'bf16',
        width: values[norm]?.width ?? 0,
      },
    ]
    return random.pick(choices.filter(choice => !choice.inputs.includes(-1) && choice.width >= 4))
  }

  test.each([1, 2, 3, 4, 5, 6, 7, 8])('random program %i gives what its commands give one by one', async seed => {
    const random = new Random(seed)
    const start: Value[] = widths.map(width => ({
      tensor: written(
        device,
        'bf16',
        [rows, width],
        Array.from({ length: rows * width }, () => random.int(0x3f00, 0x4000)),
      ),
      kind: 'bf16',
      width,
    }))
    const shapes: Omit<Value, 'tensor'>[] = [...start]
    const choices = Array.from({ length: 60 }, () => {
      const choice = choose(random, shapes)
      shapes.push(choice)
      return choice
    })
    const returned = random
      .shuffled(choices.keys())
      .slice(0, 7)
      .concat(choices.length - 1)
    const program = device.record(op => {
      const values: DeviceTensor[] = start.map(value => value.tensor)
      for (const { apply, inputs } of choices)
        values.push(
          apply(
            op,
            inputs.map(i => values[i]!),
          ),
        )
      return returned.map(i => values[start.length + i]!)
    })
    program.run()
    program.run()

    const values: DeviceTensor[] = start.map(value => value.tensor)
    let separately = 0
    for (const { apply, inputs, kind, width } of choices) {
      const single = device.record(op =>
        apply(
          op,
          inputs.map(i => values[i]!),
        ),
      )
      single.run()
      const tensor = device.tensor(kind, [rows, width])
      const result = await device.read(single.outputs, new Uint8Array(rows * width * (kind === 'bf16' ? 2 : 4)))
      device.write(tensor, result)
      values.push(tensor)
      separately += Math.ceil(result.length / 256) * 256
    }
    for (const [n, i] of returned.entries())
      expect([i, await bits(program.outputs[n]!)]).toEqual([i, await bits(values[start.length + i]!)])
    expect(program.memory).toBeLessThan(separately)
  })

  test('a long chain needs the memory of two values and its result', () => {
    const x = device.tensor('bf16', [64, 64])
    const weight = device.random([64, 64], 1, 1)
    const chain = (length: number) =>
      device.record(op => {
        let y: BF16 = x
        for (let i = 0; i < length; i++) y = op.linear(y, weight)
        return y
      }).memory
    expect(chain(100)).toBe(chain(4))
    expect(chain(100)).toBe(4 * 64 * 64 * 2) // two in the arena, two copies of the result
  })
})

describe.each(['cpu', 'simt'] as const)('programs share memory for what they do not return, on %s', name => {
  const device = open(name)
  afterAll(() => device[Symbol.dispose]())
  const x = device.tensor('bf16', [8, 64])
  device.write(
    x,
    new Uint16Array(8 * 64).map((_, i) => 0x3f80 + (i % 100)),
  )
  const weight = device.random([64, 64], 1, 1)
  const chain = (length: number) =>
    device.record(op => {
      const values: BF16[] = [x]
      for (let i = 0; i < length; i++) values.push(op.linear(values.at(-1)!, weight))
      return values.at(-1)! // all that are in between lie in the arena
    })
  const y = async (program: ReturnType<typeof chain>) => {
    program.run()
    return Buffer.from(await device.read(program.outputs, new Uint8Array(8 * 64 * 2))).toString('hex')
  }

  test('in turns, the larger one first or last', async () => {
    const alone = [await y(chain(2)), await y(chain(5))]
    expect(new Set(alone).size).toBe(2)
    for (const [first, second] of [
      [2, 5],
      [5, 2],
    ] as const) {
      // biome-ignore format: a table
      const [a, b] = [chain(first), chain(second)]
      const expected = [first, second].map(length => alone[length === 2 ? 0 : 1])
      for (let i = 0; i < 3; i++) expect(await Promise.all([y(a), y(b)])).toEqual(expected)
      a[Symbol.dispose]()
      for (let i = 0; i < 3; i++) expect(await y(b)).toBe(expected[1])
    }
  })
})

test('a second program takes memory for its results only', () => {
  const emulated = open('simt')
  const x = emulated.tensor('bf16', [8, 64])
  const weight = emulated.random([64, 64], 1, 1)
  const chain = () => emulated.record(op => op.linear(op.linear(op.linear(x, weight), weight), weight))
  const free = () => emulated.freeMemory
  const [before, first, between] = [free(), chain(), free()]
  const second = chain()
  expect(between - free()).toBe(2 * 8 * 64 * 2)
  expect(before - between).toBeGreaterThanOrEqual(4 * 8 * 64 * 2)
  for (const program of [first, second]) program[Symbol.dispose]()
  emulated[Symbol.dispose]()
})

test('cost: the bytes that each command must move and its operations', () => {
  const x = device.tensor('bf16', [3, 32])
  const residual = device.tensor('f32', [3, 40])
  const { cost } = device.record(op => {
    const y = op.linear(x, device.random([40, 32], 1, 1), { add: residual })
    return op.swiglu(op.rmsNorm(y, device.random([40], 1, 1), 1e-5))
  })
  expect(cost).toEqual([
    { op: 'linear', bytes: 3 * 32 * 2 + 40 * 32 * 2 + 3 * 40 * 4 * 2, flops: 2 * 3 * 32 * 40 },
    { op: 'rmsNorm', bytes: 3 * 40 * 4 + 40 * 2 + 3 * 40 * 2, flops: 4 * 3 * 40 },
    { op: 'swiglu', bytes: 3 * 40 * 2 + 3 * 20 * 2, flops: 5 * 3 * 20 },
  ])
})

describe('time', () => {
  const milliseconds = (body: () => void) => {
    const start = performance.now()
    body()
    return performance.now() - start
  }
  test('a forward pass of 32 layers is recorded in less than 10 ms', () => {
    const model = modelOn(device, 32)
    const [step, sampling] = [stepOn(device), samplingOn(device)]
    const kv = model.layers.map(() => kvOn(device))
    const times = Array.from({ length: 5 }, () =>
      milliseconds(() => {
        const program = device.record(op => forward(op, model, kv, step, sampling))
        expect(program.cost.length).toBe(1 + 32 * 9 + 4)
      }),
    )
    expect(Math.min(...times)).toBeLessThan(10)
  })
  test('a forward pass runs, and samples tokens of the vocabulary', async () => {
    const model = modelOn(device, 2)
    const step = stepOn(device)
    const kv = model.layers.map(() => kvOn(device))
    const program = device.record(op => forward(op, model, kv, step, samplingOn(device)))
    program.run()
    const [ids, status] = [new Int32Array(shape.out), new Int32Array(shape.out)]
    await device.read(program.outputs.ids, ids)
    await device.read(program.outputs.status, status)
    expect([...status]).toEqual([0, 0, 0])
    for (const id of ids) expect(id >= 0 && id < shape.vocab).toBe(true)
    expect(kv[0]!.k.shape[3]! * shape.heads).toBe(dim)
  })
  test('run() and read() return at once, whatever there is to compute', async () => {
    const weight = device.random([2048, 2048], 1, 0.02)
    const x = device.tensor('bf16', [256, 2048])
    const program = device.record(op => {
      let y: BF16 = x
      for (let i = 0; i < 8; i++) y = op.linear(y, weight)
      return y
    })
    program.run() // 17 GFLOP
    await device.read(program.outputs, new Uint16Array(1))
    const start = performance.now()
    const enqueue = milliseconds(() => program.run())
    const read = device.read(program.outputs, new Uint16Array(1))
    const returned = performance.now() - start
    await read
    const total = performance.now() - start
    expect(enqueue).toBeLessThan(5)
    expect(returned).toBeLessThan(10)
    expect(total).toBeGreaterThan(5 * returned)
  })
})
