// What nobody should do to a device, and what it must survive; several devices, threads and ends at once.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterAll, describe, expect, test } from '@jest/globals'
import type { Device } from '../../binding.d.ts'
import { open } from '../../lib/native.ts'
import { safetensors } from '../lib/safetensors_files.ts'
import { thrown, written } from './small_model.ts'

const folder = mkdtempSync(join(tmpdir(), 'cria-misuse-'))
const device = open('cpu', { threads: 2 })
afterAll(() => {
  device[Symbol.dispose]()
  rmSync(folder, { recursive: true })
})

/** The addon as a script finds it: tests with processes and workers of their own cannot load TypeScript. */
const addon = `require(${JSON.stringify(createRequire(import.meta.url).resolve('node-gyp-build'))})(${JSON.stringify(process.cwd())})`
/** Half a second of work on two threads, and a read behind it. */
const busy = `
  const device = ${addon}.open('cpu', { threads: 2 })
  const weight = device.random([4096, 4096], 1, 0.01)
  const x = device.tensor('bf16', [64, 4096])
  const program = device.record(op => op.linear(x, weight))
  const start = performance.now()
  for (let i = 0; i < 200; i++) program.run()
  const read = device.read(program.outputs, new Uint16Array(1))
`
function script(source: string) {
  const start = performance.now()
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['-e', source], { encoding: 'utf8', timeout: 20_000 })
  return { status, signal, stdout, stderr, seconds: (performance.now() - start) / 1000 }
}

describe('arguments from nowhere', () => {
  test.each<[string, () => unknown]>([
    ['a symbol as a size', () => device.tensor('f32', [Symbol('x') as never])],
    ['a BigInt as a size', () => device.tensor('f32', [10n as never])],
    ['a symbol as a type', () => device.tensor(Symbol('x') as never, [1])],
    ['something with a length', () => device.tensor('f32', { length: 1, 0: 4 } as never)],
    ['a symbol as a deviation', () => device.random([2], 1, Symbol('x') as never)],
    ['a fraction as a seed', () => device.random([2], 0.5, 1)],
    ['NaN as a deviation', () => device.random([2], 1, Number.NaN)],
    ['a DataView', () => device.write(device.tensor('f32', [4]), new DataView(new ArrayBuffer(16)))],
    ['a signal that is none', () => device.weights([], { signal: {} as never })],
    ['no parts', () => device.stack()],
    ['a number as a part', () => device.stack(5 as never)],
    ['pages that are no array', () => device.copyPages(5 as never, new Int32Array(1), new Int32Array(1))],
    [
      'a cache without v',
      () => device.copyPages([{ k: device.tensor('bf16', [1]) } as never], new Int32Array(1), new Int32Array(1)),
    ],
  ])('%s', (_, call) => {
    expect(thrown(call).code).toBe('ERR_ARGUMENT')
  })
  test('stack: a vector, other columns', () => {
    const matrix = device.random([2, 8], 1, 1)
    expect(thrown(() => device.stack(matrix, device.random([8], 1, 1)))).toMatchObject({ code: 'ERR_SHAPE' })
    const { code, message } = thrown(() => device.stack(matrix, device.random([2, 9], 1, 1)))
    expect(code).toBe('ERR_SHAPE')
    expect(message).toMatch(/part 1 is \[2, 9\].* 8 columns/)
  })
  test('methods and getters of one class on an object of another', () => {
    const tensor = device.tensor('f32', [1])
    const program = device.record(() => 0)
    const objects: object[] = [device, tensor, program, device.random([1], 1, 1)]
    for (const from of objects)
      for (const [name, property] of Object.entries(Object.getOwnPropertyDescriptors(Object.getPrototypeOf(from)))) {
        const call = property.get ?? (property.value as () => unknown)
        if (name === 'constructor') continue
        for (const on of [...objects, {}, Object.getPrototypeOf(from)])
          if (on.constructor !== from.constructor || on === Object.getPrototypeOf(from)) expect(() => call.call(on)).toThrow()
      }
  })
  test('arrays in shared memory', async () => {
    const tensor = device.tensor('f32', [4])
    device.write(tensor, new Float32Array(new SharedArrayBuffer(16)).fill(3))
    expect([...(await device.read(tensor, new Float32Array(new SharedArrayBuffer(16))))]).toEqual([3, 3, 3, 3])
  })
  test('a view into the middle of a buffer is all that is read and written', async () => {
    const tensor = device.tensor('i32', [4])
    const buffer = Int32Array.of(1, 2, 3, 4)
    device.write(tensor, buffer.subarray(1, 3))
    const into = new Int32Array(6).fill(-7)
    await device.read(tensor, into.subarray(2, 5))
    expect([...into]).toEqual([-7, -7, 2, 3, 0, -7])
  })
  test('an array that is detached before the call is empty', async () => {
    const tensor = device.tensor('f32', [4])
    const array = new Float32Array(4)
    structuredClone(array.buffer, { transfer: [array.buffer] })
    device.write(tensor, array)
    expect((await device.read(tensor, array)).length).toBe(0)
  })
})

describe('weights', () => {
  const file = (shift: number, values: number[]) => {
    const path = join(folder, `${shift}.safetensors`)
    const data = new Uint8Array(Uint16Array.from(values).buffer)
    const f16 = { name: 'half', dtype: 'F16', shape: [1], data: new Uint8Array(2) }
    writeFileSync(path, safetensors([{ name: 'w', dtype: 'BF16', shape: [2, 2], data }, f16], { shift }))
    return path
  }
  test.each([0, 1])('a tensor at an address that is a multiple of 2, plus %i, has its values', async shift => {
    const w = (await device.weights([file(shift, [0x3f80, 0x4000, 0x4040, 0x4080])])).get('w')! // 1 2 | 3 4
    const x = written(device, 'bf16', [1, 2], [0x3f80, 0x4120]) // 1 10
    const program = device.record(op => op.linear(x, w, { as: 'f32' }))
    program.run()
    expect([...(await device.read(program.outputs, new Float32Array(2)))]).toEqual([21, 43])
  })
  test('another element type is a weight that no operation takes', async () => {
    const half = (await device.weights([file(0, [0, 0, 0, 0])])).get('half')!
    expect([half.dtype, half.shape]).toEqual(['F16', [1]])
    const { code, message } = thrown(() => device.record(op => op.rmsNorm(device.tensor('f32', [1, 1]), half, 1e-5)))
    expect([code, message]).toEqual(['ERR_DTYPE', 'rmsNorm: weight is F16, expected BF16'])
  })
  test.each<[string, unknown]>([
    ['a text', 'stop'],
    ['undefined as AbortError', undefined],
    ['null', null],
    ['a number', 0],
  ])('aborted for %s: rejects with exactly that', async (_, reason) => {
    const controller = new AbortController()
    const loading = device.weights([file(0, [0, 0, 0, 0])], { signal: controller.signal })
    controller.abort(reason)
    await expect(
      loading.then(
        () => 'resolved',
        error => error,
      ),
    ).resolves.toBe(controller.signal.reason)
  })
  test('what onProgress throws rejects, be it a text', async () => {
    const onProgress = () => {
      throw 'text'
    }
    await expect(device.weights([file(0, [0, 0, 0, 0])], { onProgress })).rejects.toBe('text')
  })
  test('progress only grows, and ends at the size of all files', async () => {
    const seen: [number, number][] = []
    await device.weights([file(0, [0, 0, 0, 0])], { onProgress: (bytes, total) => void seen.push([bytes, total]) })
    expect(seen.map(([bytes]) => bytes)).toEqual(seen.map(([bytes]) => bytes).sort((a, b) => a - b))
    expect(seen.at(-1)![0]).toBe(seen.at(-1)![1])
  })
  test('no files, no weights', async () => {
    expect((await device.weights([])).size).toBe(0)
  })
  test('a device that goes while files are read', async () => {
    const own = open('cpu', { threads: 1 })
    const loading = own.weights([file(0, [0, 0, 0, 0])])
    own[Symbol.dispose]()
    await expect(
      loading.then(
        () => 'resolved',
        error => error.code,
      ),
    ).resolves.toBe('ERR_CLOSED')
  })
})

test('two devices at once do not see each other', async () => {
  const devices = [1, 2].map(threads => open('cpu', { threads }))
  const programs = devices.map((d, i) => {
    const x = written(d, 'bf16', [1, 2], [0x3f80, i ? 0x4000 : 0x3f80])
    return d.record(op => op.swiglu(x))
  })
  for (let n = 0; n < 20; n++) for (const program of programs) program.run()
  const results = await Promise.all(devices.map((d: Device, i) => d.read(programs[i]!.outputs, new Uint16Array(1))))
  expect(results.map(r => r[0])).toEqual([0x3f3b, 0x3fbb])
  devices[0]![Symbol.dispose]()
  programs[1]!.run()
  await devices[1]!.read(programs[1]!.outputs, new Uint16Array(1))
  devices[1]![Symbol.dispose]()
})

test('workers and the main thread use the addon side by side', async () => {
  const source = `
    const { parentPort } = require('node:worker_threads')
    const device = ${addon}.open('cpu', { threads: 1 })
    const x = device.tensor('f32', [4])
    device.write(x, Float32Array.of(1, 2, 3, 4))
    device.read(x, new Float32Array(4)).then(found => parentPort.postMessage([...found]))`
  const workers = [1, 2, 3].map(() => new Worker(source, { eval: true }))
  const found = workers.map(worker => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject)))
  const mine = device.read(written(device, 'f32', [2], [5, 6]), new Float32Array(2))
  expect(await Promise.all(found)).toEqual([1, 2, 3].map(() => [1, 2, 3, 4]))
  expect([...(await mine)]).toEqual([5, 6])
  expect(await Promise.all(workers.map(worker => worker.terminate()))).toBeDefined()
})

describe('a process that ends while the device works', () => {
  const quiet = { status: 0, signal: null, stderr: '' }
  test.each<[string, string]>([
    ['process.exit()', `${busy}; process.exit(0)`],
    ['process.exit() in a callback', `${busy}; setTimeout(() => process.exit(0), 50)`],
    ['dispose, and nothing to wait for', `${busy}; read.catch(() => {}); device[Symbol.dispose]()`],
  ])('%s: at once, with the code 0', (_, source) => {
    const end = script(source)
    expect(end).toMatchObject({ ...quiet, stdout: '' })
    expect(end.seconds).toBeLessThan(2)
  })
  test('a read keeps the process alive until it is there', () => {
    expect(script(`${busy}; read.then(() => console.log('read'))`)).toMatchObject({ ...quiet, stdout: 'read\n' })
  })
  test('dispose while steps run: within one command, and the read rejects', () => {
    const end = script(`${busy}
      setTimeout(() => {
        const begin = performance.now()
        device[Symbol.dispose]()
        const took = performance.now() - begin
        read.then(() => 'resolved', error => error.code).then(end => console.log(end, took < 200))
      }, 20)`)
    expect(end).toMatchObject({ ...quiet, stdout: 'ERR_CLOSED true\n' })
  })
  test('a device, its tensors and programs that are forgotten are collected while work is enqueued', () => {
    const source = `(() => { ${busy}; read.catch(() => {}) })(); setTimeout(() => process.exit(0), 100)`
    expect(script(source)).toMatchObject(quiet)
  })
})
