// What generations leave behind, however they end: nothing. Through the whole library, on the fake device and on the demo model.
import { getEventListeners } from 'node:events'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'
import { expect, jest, test } from '@jest/globals'
import { builtinConfigs } from '../../lib/config.ts'
import type { Generation } from '../../lib/generation.ts'
import type { Format } from '../../lib/grammar.ts'
import { Llama } from '../../lib/llama.ts'
import type { GenerateOptions } from '../../lib/options.ts'
import { empty } from './fake_crowd.ts'
import { FakeDevice } from './fake_device.ts'
import { model, random, vocab } from './fake_model.ts'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void
/** The least of some looks: what compilers and finalizers hold for a moment is nobody's. */
async function heap(): Promise<number> {
  let least = Number.POSITIVE_INFINITY
  for (let i = 0; i < 6; i++) {
    await sleep(20) // a WeakRef is strong until its turn ends
    gc()
    least = Math.min(least, process.memoryUsage().heapUsed)
  }
  return least
}
const listeners = (signal: AbortSignal) => getEventListeners(signal, 'abort').length

/** Users who end generations in every way that there is, and look at them in every way, or not at all. */
class Users {
  readonly #of: (n: number) => number
  readonly #llama: Llama
  readonly #vocab: number
  readonly #options: (of: (n: number) => number) => GenerateOptions
  /** Of many generations, never aborted. */
  readonly shared = new AbortController().signal
  readonly generations: WeakRef<Generation>[] = []
  /** How they ended. */
  readonly ends = new Map<string, number>()
  /** Listeners at once on the signal that is shared. */
  most = 0
  /** Listeners that were left on any signal. */
  left = 0

  constructor(llama: Llama, seed: number, options: (of: (n: number) => number) => GenerateOptions = () => ({})) {
    this.#of = random(seed)
    this.#llama = llama
    this.#vocab = llama.config.vocab
    this.#options = options
  }

  async ask(count: number, users: number): Promise<void> {
    this.generations.length = 0
    const signals = [this.shared]
    const user = async () => {
      while (this.generations.length < count) await this.#one(signals)
    }
    const ended = await Promise.allSettled(Array.from({ length: users }, user))
    while (this.#llama.stats().running + this.#llama.stats().waiting > 0) await turn() // those that nobody looks at
    this.left = signals.reduce((sum, signal) => sum + listeners(signal), 0)
    for (const one of ended) if (one.status === 'rejected') throw one.reason
  }

  async #one(signals: AbortSignal[]): Promise<void> {
    const of = this.#of
    const own = new AbortController()
    const signal = [undefined, this.shared, own.signal][of(3)]
    signals.push(own.signal)
    if (of(10) === 0) own.abort('before')
    const prompt = Array.from({ length: 1 + of(8) }, () => of(this.#vocab))
    const options = { maxTokens: 1 + of(8), signal, ...this.#options(of) }
    const started = of(8) === 0 ? this.#llama.generateMany(prompt, 1 + of(3), options) : [this.#llama.generate(prompt, options)]
    this.most = Math.max(this.most, listeners(this.shared))
    for (const generation of started) {
      this.generations.push(new WeakRef(generation))
      if (of(5) > 0) await this.#end(generation, own)
    }
  }

  async #end(generation: Generation, own: AbortController): Promise<void> {
    const pieces = this.#of(4)
    const how = this.#of(4)
    const looking = async () => {
      let seen = 0
      for await (const _ of generation) if (++seen > pieces) break
    }
    if (how === 0) await looking().catch(() => {})
    for (let turns = how > 1 ? this.#of(4) : 0; turns > 0; turns--) await turn()
    if (how === 2) generation.abort()
    if (how === 3) own.abort('enough')
    const end = await generation.then(
      ({ finishReason }) => finishReason,
      error => String(error),
    )
    this.ends.set(end, (this.ends.get(end) ?? 0) + 1)
  }
}

test('10,000 generations: no pages, listeners or memory', async () => {
  jest.resetModules()
  jest.unstable_mockModule('../../lib/native.ts', () => ({ open: () => new FakeDevice(), devices: () => [] }))
  jest.unstable_mockModule('../../lib/weights.ts', () => ({ randomModel: () => model, loadModel: () => model }))
  const { Llama: Faked } = await import('../../lib/llama.ts')
  const config = { ...builtinConfigs['llama3.2-1b'], layers: 2, kvHeads: 1, headDim: 2, vocab }
  const llama = await Faked.random(config, { contextLength: 64, pageSize: 4, maxSequences: 8, kvCacheTokens: 160 })
  const users = new Users(llama, 1, of => ({
    temperature: of(2) / 2,
    ...(of(8) === 0 && { topLogprobs: 3, promptLogprobs: true }),
    ...(of(8) === 0 && { frequencyPenalty: 1 }),
    ...(of(8) === 0 && { promptLookup: 4 }),
  }))
  await users.ask(2000, 30)
  const before = await heap()
  await users.ask(10_000, 30)
  const after = await heap()
  expect(llama.stats()).toMatchObject({ ...empty, preemptions: expect.any(Number) })
  expect(llama.stats().preemptions).toBeGreaterThan(0)
  for (const end of ['length', 'abort', 'enough', 'before']) expect(users.ends.get(end)).toBeGreaterThan(50)
  expect(users.left).toBe(0)
  expect(users.most).toBeGreaterThan(10)
  expect(users.generations.filter(one => one.deref()).length).toBeLessThan(100)
  expect(after - before).toBeLessThan(2 ** 23) // 800 bytes of each
  await llama.close()
}, 120_000)

/** What threads were told to keep: matchers that were begun and not disposed of. */
function watchThreads() {
  const workers = new Set<Worker>()
  const kept = new Set<string>()
  const begun = { count: 0 }
  const { postMessage: post } = Worker.prototype
  Worker.prototype.postMessage = function (message: { id: number; type?: string; dispose?: true }, ...rest) {
    const { id, type, dispose } = message
    workers.add(this)
    const key = `${this.threadId} ${id}`
    if (type) begun.count++
    if (type) kept.add(key)
    if (dispose) kept.delete(key)
    post.call(this, message, ...rest)
  }
  const restore = () => {
    Worker.prototype.postMessage = post
  }
  return { workers, kept, begun, [Symbol.dispose]: restore }
}

const formats: Format[] = [{ type: 'regex', pattern: '(yes|no|[a-z]{3,9})' }, { type: 'json' }, { type: 'regex', pattern: '(' }]
const withFormats = (of: (n: number) => number): GenerateOptions => ({
  temperature: of(2) / 2,
  ...(of(2) === 0 && { format: of(20) === 0 ? { type: 'regex', pattern: `a{${1 + of(1000)}}` } : formats[of(3)]! }),
  ...(of(3) === 0 && { stop: ['e', 'ing'] }),
})

test('10,000 generations with text and formats: no matchers either', async () => {
  using threads = watchThreads()
  await using llama = await Llama.load('demo', { device: 'cpu', threads: 1, contextLength: 64, kvCacheTokens: 256 })
  const users = new Users(llama, 2, withFormats)
  await users.ask(2000, 12)
  const before = await heap()
  await users.ask(10_000, 12)
  const after = await heap()
  expect(llama.stats()).toMatchObject(empty)
  for (const end of ['length', 'stop', 'abort', 'enough', 'before']) expect(users.ends.get(end)).toBeGreaterThan(100)
  expect([...users.ends.keys()].filter(end => end.includes('Error')).join()).toMatch(/^InputError: [^,]+flag u$/)
  expect(users.left).toBe(0)
  expect(users.generations.filter(one => one.deref()).length).toBeLessThan(100)
  expect(after - before).toBeLessThan(2 ** 23) // 800 bytes of each
  expect(threads.begun.count).toBeGreaterThan(3000)
  expect([...threads.kept]).toEqual([])
}, 120_000)

test('close() in the middle of them: everybody hears of it, and no thread, listener or memory is left', async () => {
  using threads = watchThreads()
  const round = async (seed: number) => {
    const llama = await Llama.load('demo', { device: 'cpu', threads: 1, contextLength: 64 })
    const users = new Users(llama, seed, withFormats)
    const asking = users.ask(1000, 12).catch(error => error)
    await sleep(40 * (seed % 5))
    await llama.close()
    expect(await asking).toMatchObject({ code: 'ERR_CLOSED' })
    await turn()
    expect(llama.stats()).toMatchObject(empty)
    expect(users.left).toBe(0)
    return users.generations
  }
  for (let seed = 0; seed < 5; seed++) await round(seed)
  const before = await heap()
  const generations = []
  for (let seed = 5; seed < 15; seed++) generations.push(...(await round(seed)))
  const after = await heap()
  expect(generations.filter(one => one.deref()).length).toBeLessThan(20)
  expect(after - before).toBeLessThan(2 ** 23)
  expect([...threads.workers].filter(({ threadId }) => threadId !== -1)).toEqual([])
}, 120_000)
