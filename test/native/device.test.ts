/** Devices: arguments, failures, and the end of their life. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, test } from '@jest/globals'
import type { BF16, Device } from '../../binding.d.ts'
import { devices, open } from '../../lib/native.ts'
import { safetensors } from '../lib/safetensors_files.ts'
import { openAs } from '../ops/conforms.ts'

const folder = mkdtempSync(join(tmpdir(), 'cria-device-'))
afterAll(() => rmSync(folder, { recursive: true }))

let device: Device
beforeEach(() => {
  device = open('cpu', { threads: 2 })
})

const code = (body: () => unknown): string | undefined => {
  try {
    body()
    return 'nothing was thrown'
  } catch (error) {
    return (error as { code?: string }).code
  }
}
const rejection = async (promise: Promise<unknown>): Promise<Error & { code?: string }> =>
  promise.then(
    () => {
      throw new Error('nothing was rejected')
    },
    (error: Error) => error,
  )

describe('open', () => {
  test('devices() names every candidate with a reason, and the CPU is there', () => {
    const reports = devices()
    expect(reports.at(-1)).toMatchObject({ device: 'cpu', available: true })
    expect(reports.at(-1)!.memory).toBeGreaterThan(2 ** 28)
    for (const report of reports) expect(report.reason.length).toBeGreaterThan(3)
  })

  test.each([
    ['cuda:0', 'ERR_DEVICE_UNAVAILABLE'],
    ['cuda:', 'ERR_DEVICE_UNKNOWN'],
    ['cuda:x', 'ERR_DEVICE_UNKNOWN'],
    ['tpu', 'ERR_DEVICE_UNKNOWN'],
    ['', 'ERR_DEVICE_UNKNOWN'],
  ])('"%s" is refused: %s', (name, expected) => {
    if (devices().some(report => report.device === name && report.available)) return
    expect(code(() => open(name as 'cpu'))).toBe(expected)
  })

  test.each([0, -1, 1.5, Number.NaN, 1e9, 'two'])('threads %p', threads => {
    expect(code(() => open('cpu', { threads: threads as number }))).toBe('ERR_ARGUMENT')
  })

  test('CRIA_CPU chooses the instruction set, and is refused with the choices when it names none', () => {
    expect(openAs({ device: 'cpu', cpu: 'scalar', activations: 'bf16' }).description).toMatch(/^cpu \(scalar, /)
    expect(() => openAs({ device: 'cpu', cpu: 'sse9', activations: 'bf16' })).toThrow(
      /CRIA_CPU is "sse9", expected one of scalar/,
    )
  })

  test('CRIA_DEVICE replaces only auto', () => {
    try {
      process.env.CRIA_DEVICE = 'tpu'
      expect(code(() => open('auto'))).toBe('ERR_DEVICE_UNKNOWN')
      expect(open('cpu').name).toBe('cpu')
    } finally {
      delete process.env.CRIA_DEVICE
    }
  })
})

describe('memory', () => {
  test.each([
    ['no axes', []],
    ['five axes', [1, 1, 1, 1, 1]],
    ['an empty axis', [0]],
    ['a fraction', [1.5]],
    ['a negative axis', [-1]],
  ])('tensor with %s', (_, shape) => {
    expect(code(() => device.tensor('f32', shape))).toBe('ERR_ARGUMENT')
  })

  test('more than there is', () => {
    expect(code(() => device.tensor('f32', [2 ** 40]))).toBe('ERR_OUT_OF_MEMORY')
    expect(code(() => device.tensor('f32', [2 ** 50, 2 ** 50]))).toBe('ERR_OUT_OF_MEMORY')
    expect(code(() => device.tensor('f16' as 'f32', [1]))).toBe('ERR_ARGUMENT')
  })

  test('starts as zeros; write copies at once and keeps its place; read gives the first elements', async () => {
    const tensor = device.tensor('i32', [6])
    const values = new Int32Array([1, 2, 3, 4])
    const before = device.read(tensor, new Int32Array(6))
    device.write(tensor, values)
    values.fill(9)
    expect([...(await before)]).toEqual([0, 0, 0, 0, 0, 0])
    expect([...(await device.read(tensor, new Int32Array(6)))]).toEqual([1, 2, 3, 4, 0, 0])
    expect([...(await device.read(tensor, new Int32Array(2)))]).toEqual([1, 2])
    expect([...(await device.read(tensor, new Uint8Array(4)))]).toEqual([1, 0, 0, 0])
  })

  test('arrays of another type or size', () => {
    const tensor = device.tensor('f32', [4])
    expect(code(() => device.write(tensor, new Int32Array(4)))).toBe('ERR_ARGUMENT')
    expect(code(() => device.write(tensor, new Float32Array(5)))).toBe('ERR_ARGUMENT')
    expect(code(() => device.write(tensor, new Uint8Array(3)))).toBe('ERR_ARGUMENT')
    expect(code(() => device.write(tensor, [1, 2] as unknown as Float32Array))).toBe('ERR_ARGUMENT')
    expect(code(() => device.read({} as BF16, new Float32Array(4)))).toBe('ERR_ARGUMENT')
  })

  test('an array that is detached while the device works rejects', async () => {
    const into = new Float32Array(4)
    const promise = device.read(device.tensor('f32', [4]), into)
    structuredClone(into.buffer, { transfer: [into.buffer] })
    expect((await rejection(promise)).code).toBe('ERR_ARGUMENT')
  })

  test('pages are copied in order, and nothing is copied when one number is wrong', async () => {
    const cache = () => device.tensor('bf16', [4, 1, 2, 1]) as BF16
    const kv = [{ k: cache(), v: cache() }]
    device.write(kv[0]!.k, new Uint16Array([1, 1, 2, 2, 3, 3, 4, 4]))
    expect(code(() => device.copyPages(kv, new Int32Array([0, 1]), new Int32Array([2, 4])))).toBe('ERR_ARGUMENT')
    expect(code(() => device.copyPages(kv, new Int32Array([0]), new Int32Array([2, 1])))).toBe('ERR_ARGUMENT')
    device.copyPages(kv, new Int32Array([0, 2]), new Int32Array([2, 3]))
    expect([...(await device.read(kv[0]!.k, new Uint16Array(8)))]).toEqual([1, 1, 2, 2, 1, 1, 1, 1])
  })
})

describe('the end', () => {
  test('dispose: waiting reads reject, later calls throw, again is fine', async () => {
    const tensor = device.tensor('f32', [4])
    device.random([4096, 4096], 1, 1)
    const waiting = device.read(tensor, new Float32Array(4))
    device[Symbol.dispose]()
    const end = await Promise.allSettled([waiting])
    if (end[0]!.status === 'rejected') expect(end[0]!.reason.code).toBe('ERR_CLOSED')
    for (const call of [
      () => device.tensor('f32', [1]),
      () => device.write(tensor, new Float32Array(4)),
      () => device.read(tensor, new Float32Array(4)),
      () => device.random([1, 1], 1, 1),
      () => device.record(() => undefined),
    ]) {
      expect(code(call)).toBe('ERR_CLOSED')
    }
    device[Symbol.dispose]()
  })

  test('reads behind much work reject when the device goes', async () => {
    const weight = device.random([4096, 4096], 1, 1)
    for (let i = 0; i < 20; i++) device.random([4096, 4096], i, 1)
    const waiting = device.read(device.tensor('f32', [4]), new Float32Array(4))
    device[Symbol.dispose]()
    expect((await rejection(waiting)).code).toBe('ERR_CLOSED')
    expect(weight.shape).toEqual([4096, 4096])
  })

  test('a disposed tensor is refused, and what is enqueued keeps its memory', async () => {
    const tensor = device.tensor('i32', [4])
    device.write(tensor, new Int32Array([1, 2, 3, 4]))
    const waiting = device.read(tensor, new Int32Array(4))
    tensor[Symbol.dispose]()
    expect([...(await waiting)]).toEqual([1, 2, 3, 4])
    expect(code(() => device.read(tensor, new Int32Array(4)))).toBe('ERR_DISPOSED')
  })
})

describe('weights', () => {
  const bytes = (...values: number[]) => Buffer.from(new Uint16Array(values).buffer)
  const write = (name: string, contents: Buffer): string => {
    const path = join(folder, name)
    writeFileSync(path, contents)
    return path
  }
  const one = (name: string) => [{ name, dtype: 'BF16', shape: [1, 2], data: bytes(0x3f80, 0x4000) }]

  test('names, shapes, types and files', async () => {
    const path = write('one.safetensors', safetensors(one('a')))
    const weights = await device.weights([path])
    expect(weights.get('a')).toMatchObject({ shape: [1, 2], dtype: 'BF16', file: path })
  })

  test('missing file, the same tensor twice, wrong arguments', async () => {
    const path = write('one.safetensors', safetensors(one('a')))
    const again = write('two.safetensors', safetensors(one('a')))
    expect((await rejection(device.weights([join(folder, 'none')]))).code).toBe('ERR_MODEL_FILE_NOT_FOUND')
    const twice = await rejection(device.weights([path, again]))
    expect(twice.code).toBe('ERR_WEIGHTS_DUPLICATE')
    expect(twice.message).toContain(again)
    expect(code(() => device.weights('x' as unknown as string[]))).toBe('ERR_ARGUMENT')
    expect(code(() => device.weights([5 as unknown as string]))).toBe('ERR_ARGUMENT')
  })

  test('an aborted signal, and a progress callback that throws, reject with their own reason', async () => {
    const path = write('one.safetensors', safetensors(one('a')))
    const reason = new Error('enough')
    expect(await rejection(device.weights([path], { signal: AbortSignal.abort(reason) }))).toBe(reason)
    const controller = new AbortController()
    const loading = device.weights([path], { signal: controller.signal })
    controller.abort(reason)
    expect(await rejection(loading)).toBe(reason)
    const own = new Error('mine')
    const throwing = device.weights([path], {
      onProgress: () => {
        throw own
      },
    })
    expect(await rejection(throwing)).toBe(own)
  })
})
