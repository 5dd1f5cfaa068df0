// Writes to places of a tensor, on every device that this machine has.
import { afterAll, describe, expect, test } from '@jest/globals'
import type { Device, DeviceName, DType, I32 } from '../../binding.d.ts'
import { devices, open } from '../../lib/native.ts'
import { openAs } from '../ops/conforms.ts'
import { Random } from '../ops/numbers.ts'
import { thrown, written } from './small_model.ts'

const gpus = devices().filter(({ device, available }) => available && device !== 'cpu')
const names = ['cpu', 'simt', ...gpus.map(({ device }) => device as DeviceName)] as const

describe.each(names)('on %s', name => {
  const device: Device = name === 'simt' ? openAs({ device: name, activations: 'bf16' }) : open(name, { threads: 2 })
  afterAll(() => device[Symbol.dispose]())
  const zeros = (count: number) => written(device, 'i32', [count], new Array(count).fill(0)) as I32
  const all = async (tensor: I32) => [...(await device.read(tensor, new Int32Array(tensor.shape[0]!)))]

  test('each element goes to its place, and no other changes', async () => {
    const random = new Random(3)
    for (const [size, count] of [
      [1, 1],
      [300, 7],
      [3000, 2500],
      [70000, 40000],
    ] as const) {
      const tensor = zeros(size)
      const at = random.shuffled(Array(size).keys()).slice(0, count)
      const expected = new Array(size).fill(0)
      for (const [i, place] of at.entries()) expected[place] = i + 1
      device.write(
        tensor,
        Int32Array.from(at.keys(), i => i + 1),
        Int32Array.from(at),
      )
      expect(await all(tensor)).toEqual(expected)
    }
  })

  test('floats and unsigned numbers keep their bits; an array of bytes is as good', async () => {
    const at = Int32Array.of(2, 0)
    const floats = device.tensor('f32', [2, 2])
    device.write(floats, Float32Array.of(Number.NEGATIVE_INFINITY, -0), at)
    expect([...(await device.read(floats, new Float32Array(4)))]).toEqual([-0, 0, Number.NEGATIVE_INFINITY, 0])
    const words = device.tensor('u32', [4])
    device.write(words, Uint32Array.of(0xffffffff, 7), at)
    device.write(words, Uint8Array.of(1, 0, 0, 0x80), Int32Array.of(3))
    expect([...(await device.read(words, new Uint32Array(4)))]).toEqual([7, 0, 0xffffffff, 0x80000001])
  })

  test('it takes effect in its turn, among writes, runs and reads', async () => {
    const tokens = zeros(4)
    const fields = { tokens, source: written(device, 'i32', [4], [-1, -1, -1, -1]) }
    const queryStart = written(device, 'i32', [2], [0, 4])
    const table = device.random([64, 8], 1, 1)
    const program = device.record(op => op.embed(table, { ...fields, queryStart } as never))
    const rows = async () => {
      program.run()
      const x = await device.read(program.outputs, new Float32Array(32))
      return [0, 1, 2, 3].map(row => `${x.subarray(8 * row, 8 * row + 8)}`)
    }
    const row: string[] = []
    for (let id = 0; id < 10; id++) {
      device.write(tokens, Int32Array.of(id))
      row.push((await rows())[0]!)
    }
    const found: Promise<unknown>[] = []
    for (let step = 0; step < 5; step++) {
      device.write(tokens, Int32Array.of(step, step, step, step))
      device.write(tokens, Int32Array.of(9, 8), Int32Array.of(3, 1))
      found.push(rows(), all(tokens))
      device.write(tokens, Int32Array.of(5), Int32Array.of(3))
      device.write(tokens, Int32Array.of(6))
      found.push(rows(), all(tokens))
    }
    const expected = [0, 1, 2, 3, 4].flatMap(step => [
      [step, 8, step, 9],
      [6, 8, step, 5],
    ])
    const ids = expected.flatMap(four => [four.map(id => row[id]!), four])
    expect(await Promise.all(found)).toEqual(ids)
  })

  test('both arrays are copied; empty ones, and undefined, are fine', async () => {
    const tensor = zeros(3)
    const [from, at] = [Int32Array.of(1, 2), Int32Array.of(2, 1)]
    device.write(tensor, from, at)
    from.fill(9)
    at.fill(0)
    device.write(tensor, new Int32Array(0), new Int32Array(0))
    device.write(tensor, Int32Array.of(5), undefined)
    expect(await all(tensor)).toEqual([5, 2, 1])
  })

  test('a place that comes twice has one of its values', async () => {
    const tensor = zeros(2)
    device.write(tensor, Int32Array.of(4, 5, 6), Int32Array.of(1, 1, 1))
    const [other, twice] = await all(tensor)
    expect(other).toBe(0)
    expect([4, 5, 6]).toContain(twice)
  })

  test('memory stays until what is enqueued has been done', async () => {
    const kept = zeros(2)
    for (let i = 0; i < 20; i++) {
      const tensor = device.tensor('i32', [1000])
      device.write(tensor, Int32Array.of(i), Int32Array.of(999))
      tensor[Symbol.dispose]()
      expect(thrown(() => device.write(tensor, Int32Array.of(1), Int32Array.of(0))).code).toBe('ERR_DISPOSED')
    }
    expect(await all(kept)).toEqual([0, 0])
  })

  test.each<[string, DType, unknown, unknown, string, RegExp]>([
    ['a negative place', 'i32', Int32Array.of(1, 2), Int32Array.of(0, -1), 'ERR_ARGUMENT', /at\[1\] is -1, .* 0 to 3/],
    ['a place behind the end', 'f32', Float32Array.of(1), Int32Array.of(4), 'ERR_ARGUMENT', /at\[0\] is 4, .* 0 to 3/],
    ['fewer places', 'i32', Int32Array.of(1, 2), Int32Array.of(0), 'ERR_ARGUMENT', /at has 1 elements/],
    ['more places', 'i32', new Int32Array(0), Int32Array.of(0), 'ERR_ARGUMENT', /at has 1 elements/],
    ['bytes of half an element', 'i32', new Uint8Array(6), Int32Array.of(0), 'ERR_ARGUMENT', /at has 1 elements/],
    ['places of another type', 'i32', Int32Array.of(1), Uint32Array.of(0), 'ERR_ARGUMENT', /at is an object, .* Int32Array/],
    ['places that are bytes', 'i32', Int32Array.of(1), new Uint8Array(4), 'ERR_ARGUMENT', /at is an object, .* Int32Array/],
    ['places that are none', 'i32', Int32Array.of(1), null, 'ERR_ARGUMENT', /at is null, .* Int32Array/],
    ['elements of another type', 'i32', Float32Array.of(1), Int32Array.of(0), 'ERR_ARGUMENT', /i32 \[4\], expected a Int32Array/],
    ['elements of 2 bytes', 'bf16', Uint16Array.of(1), Int32Array.of(0), 'ERR_DTYPE', /bf16, expected f32, i32 or u32/],
  ])('%s is refused, and nothing is written', async (_, dtype, from, at, code, message) => {
    const tensor = device.tensor(dtype, [4])
    const error = thrown(() => device.write(tensor, from as Int32Array, at as Int32Array))
    expect(error.code).toBe(code)
    expect(error.message).toMatch(message)
    expect(Math.max(...(await device.read(tensor, new Uint8Array(8))))).toBe(0)
  })
})
