/** Weights on their way to a device with memory of its own: the emulated GPU. */
import { getEventListeners } from 'node:events'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { Llama } from '../../lib/index.ts'
import { open } from '../../lib/native.ts'
import { packageRoot } from '../../lib/package.ts'
import { realEnv } from '../ops/conforms.ts'

const fixture = join(packageRoot, 'test/fixtures/llama31-hd64-tied-sharded')
const load = (options: object = {}, model = fixture) => Llama.load(model, { device: 'simt', maxSequences: 1, ...options })
const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'resolved',
    error => error,
  )

afterEach(() => {
  delete realEnv.CRIA_SIMT
})

describe('load', () => {
  test('progress is what has been uploaded, a weight at a time, and generating needs no more of it', async () => {
    const seen: [number, number][] = []
    await using llama = await load({ onProgress: (...bytes: [number, number]) => void seen.push(bytes) })
    const total = seen[0]![1]
    expect(seen.length).toBeGreaterThan(6 * llama.config.layers)
    expect(seen.every(([bytes, all], i) => all === total && bytes > (seen[i - 1]?.[0] ?? -1))).toBe(true)
    expect([seen[0]![0], seen.at(-1)![0]]).toEqual([0, total])
    await using cpu = await Llama.load(fixture, { device: 'cpu' })
    const [a, b] = await Promise.all([llama, cpu].map(one => one.generate([1, 2, 3], { maxTokens: 2, temperature: 0 })))
    expect(a!.tokens).toEqual(b!.tokens)
  })

  test('a signal ends it at any weight, with its reason, and leaves nothing behind', async () => {
    const reason = new Error('no longer wanted')
    for (const at of [1, 5, 1000]) {
      const controller = new AbortController()
      let calls = 0
      const onProgress = (bytes: number, total: number) => {
        if (++calls === at || bytes === total) controller.abort(reason)
      }
      expect(await rejection(load({ signal: controller.signal, onProgress }))).toBe(reason)
      expect(calls).toBeLessThanOrEqual(at)
      expect(getEventListeners(controller.signal, 'abort')).toEqual([])
    }
  })

  test('an onProgress that throws rejects with what it threw', async () => {
    const thrown = new Error('mine')
    const onProgress = () => {
      throw thrown
    }
    expect(await rejection(load({ onProgress }))).toBe(thrown)
  })

  test('what does not fit is refused before anything is copied, with both sizes', async () => {
    const seen: number[] = []
    realEnv.CRIA_SIMT = 'memory=100000'
    expect(await rejection(load({ onProgress: (bytes: number) => void seen.push(bytes) }))).toMatchObject({
      name: 'DeviceError',
      code: 'ERR_OUT_OF_MEMORY',
      message: expect.stringMatching(
        /^simt: the weights take \d+ bytes and the key\/value cache \d+, but only \d+ are free; lower contextLength or kvCacheTokens$/,
      ),
    })
    expect(seen).toEqual([])
  })
})

describe('a device', () => {
  test('has the parts of a stack once, and counts what it has', async () => {
    using device = open('simt')
    const files = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'].map(name => join(fixture, name))
    const weights = await device.weights(files)
    const [q, k, v] = ['q', 'k', 'v'].map(name => weights.get(`model.layers.0.self_attn.${name}_proj.weight`)!)
    const before = device.freeMemory
    const stacked = device.stack(q!, k!, v!)
    expect(device.freeMemory).toBe(before)
    await Promise.all([device.upload(stacked), device.upload(stacked)])
    expect(before - device.freeMemory).toBe(2 * stacked.shape[0]! * stacked.shape[1]!)
  })

  test('refuses what it has no room for, and what is no weight of its own', async () => {
    realEnv.CRIA_SIMT = 'memory=100000'
    using device = open('simt')
    expect(() => device.random([256, 256], 1, 1)).toThrow(/^simt: 131072 bytes asked for, but only \d+ of 100000 are free$/)
    expect(() => device.upload({} as never)).toThrow('upload: weight is an object, expected a Weight')
    using cpu = open('cpu')
    expect(cpu.freeMemory).toBe(Number.POSITIVE_INFINITY)
    expect(await cpu.upload(cpu.random([8, 8], 1, 1))).toBeUndefined()
  })
})
