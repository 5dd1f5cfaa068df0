// The model as users see it: load, many at once, little cache, logits, close.

import { getEventListeners } from 'node:events'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as tick } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import type { Device } from '../../binding.d.ts'
import { builtinConfigs, readConfig } from '../../lib/config.ts'
import { Engine, type Job } from '../../lib/engine.ts'
import { Llama } from '../../lib/llama.ts'
import { open } from '../../lib/native.ts'
import type { LoadOptions } from '../../lib/options.ts'
import { Programs } from '../../lib/programs.ts'
import { samplingParameters } from '../../lib/sampling.ts'
import { Sequence } from '../../lib/sequence.ts'
import { loadModel } from '../../lib/weights.ts'

const fixture = join(import.meta.dirname, '../fixtures/llama3-hd128')
const cpu = { device: 'cpu', threads: 1 }
const load = (options: LoadOptions = {}, folder = fixture) => Llama.load(folder, { ...cpu, ...options })
const greedy = { temperature: 0, ignoreEos: true, maxTokens: 8 }
const ids = (length: number, seed = 1) => Array.from({ length }, (_, i) => 3 + ((i * 37 + seed * 101) % 500))
const idle = (llama: Llama) => {
  const { running, waiting, pages } = llama.stats()
  expect({ running, waiting, used: pages.used }).toEqual({ running: 0, waiting: 0, used: 0 })
}
const rejection = (promise: PromiseLike<unknown>): Promise<unknown> =>
  Promise.resolve(promise).then(
    () => 'resolved',
    error => error,
  )
const same = (a: Float32Array, b: Float32Array) => expect(Buffer.from(a.buffer).equals(Buffer.from(b.buffer))).toBe(true)

let llama: Llama
beforeAll(async () => {
  llama = await load()
})
afterAll(async () => {
  idle(llama)
  await llama.close()
})

describe('load', () => {
  test('says what it loaded, and how much it has read', async () => {
    const seen: [number, number][] = []
    await using demo = await Llama.load('demo', { ...cpu, contextLength: 100, onProgress: (...bytes) => void seen.push(bytes) })
    expect(demo.device).toMatch(/^cpu \(\w+, 1 thread\)$/)
    expect([demo.contextLength, demo.config.context, demo.config.layers]).toEqual([100, 1024, 6])
    expect(seen.length).toBeGreaterThan(0)
    expect(seen.every(([bytes, total], i) => total === seen[0]![1] && bytes > (seen[i - 1]?.[0] ?? -1) && bytes <= total)).toBe(
      true,
    )
    expect(seen.at(-1)![0]).toBe(seen[0]![1])
    expect(seen[0]![1]).toBeGreaterThan(11e6)
  })

  test.each<[string, object, object]>([
    ['a device there is not', { device: 'gpu' }, { name: 'DeviceError', code: 'ERR_DEVICE_UNKNOWN' }],
    ['a device without a number', { device: 'cuda' }, { name: 'DeviceError', code: 'ERR_DEVICE_UNKNOWN' }],
    ['an option there is not', { gpu: 1 }, { name: 'InputError', code: 'ERR_OPTION_UNKNOWN' }],
    ['a wrong option', { threads: 0 }, { name: 'InputError', code: 'ERR_OPTION_RANGE' }],
    ['a context longer than the model has', { contextLength: 513 }, { name: 'InputError', code: 'ERR_OPTION_RANGE' }],
    ['a cache larger than the memory', { kvCacheTokens: 2 ** 30 }, { name: 'DeviceError', code: 'ERR_OUT_OF_MEMORY' }],
  ])('%s', async (_, options, error) => {
    expect(await rejection(load(options))).toMatchObject(error)
    expect(await rejection(load({ device: 'gpu' }))).toMatchObject({ message: expect.stringContaining('gpu') as never })
  })

  test.each([[''], [undefined], [5], ['a\0b']])('a model named %p', async model => {
    expect(await rejection(Llama.load(model as string))).toMatchObject({ code: 'ERR_OPTION_TYPE', name: 'InputError' })
  })

  test('a signal aborted before, and during', async () => {
    const reason = new Error('no longer wanted')
    expect(await rejection(load({ signal: AbortSignal.abort(reason) }))).toBe(reason)
    const controller = new AbortController()
    const onProgress = () => controller.abort(reason)
    expect(await rejection(load({ signal: controller.signal, onProgress }, 'demo'))).toBe(reason)
    expect(getEventListeners(controller.signal, 'abort')).toEqual([])
  })

  test('stop ids are those of both files (F25); text needs a tokenizer', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'cria-llama-'))
    try {
      await cp(fixture, folder, { recursive: true })
      const prompt = ids(17)
      const { tokens } = await llama.generate(prompt, { ...greedy, maxTokens: 4 })
      await writeFile(join(folder, 'generation_config.json'), JSON.stringify({ eos_token_id: [500, tokens[2]] }))
      await using other = await load({}, folder)
      expect(other.config.stopTokens).toEqual([2, 500, tokens[2]].sort((a, b) => a! - b!))
      expect(await other.generate(prompt, { temperature: 0 })).toMatchObject({
        finishReason: 'stop',
        tokens: tokens.slice(0, tokens.indexOf(tokens[2]!) + 1),
        text: '',
      })
      expect((await other.generate(prompt, greedy)).tokens.length).toBe(8)
      const error = expect.objectContaining({ name: 'InputError', code: 'ERR_PROMPT_TOKENIZER' })
      for (const run of [() => other.generate('text'), () => other.generate(prompt, { stop: 'a' }), () => other.chat([])])
        expect(run).toThrow(error as never)
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})

describe('random', () => {
  test.each([
    [undefined, 'config is undefined'],
    [{}, 'config has layers undefined'],
    [{ ...builtinConfigs['llama3.2-1b'], kvHeads: 3 }, 'config has kvHeads 3, expected a divisor of heads (32)'],
    [{ ...builtinConfigs['llama3.2-1b'], headDim: 3 }, 'config has headDim 3, expected an even number'],
    [{ ...builtinConfigs['llama3.2-1b'], vocab: 0.5 }, 'config has vocab 0.5'],
  ])('%j is refused', async (config, message) => {
    const error = { name: 'InputError', code: 'ERR_ARGUMENT', message: expect.stringContaining(message) }
    expect(await rejection(Llama.random(config as never, cpu))).toMatchObject(error)
  })
})

describe('many at once', () => {
  test('more than there is room for: they start in order, and all finish as if alone', async () => {
    await using few = await load({ maxSequences: 4 })
    const started: number[] = []
    const all = Array.from({ length: 30 }, async (_, i) => {
      const generation = few.generate(ids(1 + (i % 20), i), { ...greedy, maxTokens: 3 + (i % 5) })
      for await (const _ of generation) {
        started.push(i)
        expect(few.stats().running).toBeLessThanOrEqual(4)
      }
      return await generation
    })
    const completions = await Promise.all(all)
    expect([...new Set(started)]).toEqual(completions.map((_, i) => i))
    for (const [i, completion] of completions.entries()) {
      expect(completion).toEqual(await llama.generate(ids(1 + (i % 20), i), { ...greedy, maxTokens: 3 + (i % 5) }))
    }
    idle(few)
  })

  test('a small cache: those that fit wait for each other, what never fits is refused at once (F1)', async () => {
    await using small = await load({ kvCacheTokens: 64, pageSize: 8 })
    const requests = Array.from({ length: 12 }, (_, i) => ids(5 + 4 * i, i)) // up to 49 + 8 - 1 tokens of 64
    const running = requests.map(prompt => small.generate(prompt, greedy))
    const error = { name: 'InputError', code: 'ERR_OPTION_KV_CACHE', message: expect.stringContaining('cache of 64 tokens') }
    expect(() => small.generate(ids(60), greedy)).toThrow(expect.objectContaining(error) as never)
    expect(() => small.generate(ids(1), { ...greedy, maxTokens: 65 })).toThrow(expect.objectContaining(error) as never)
    expect(await rejection(small.logits(ids(65)))).toMatchObject(error)
    const logits = small.logits(ids(64))
    expect((await small.generate(ids(57), greedy)).tokens.length).toBe(8) // exactly all of it
    for (const [i, generation] of running.entries()) expect(await generation).toEqual(await llama.generate(requests[i]!, greedy))
    same(await logits, await llama.logits(ids(64)))
    idle(small)
  })

  test('300 generations, most of them aborted somewhere, leave nothing behind', async () => {
    let random = 12345
    const next = (below: number) => {
      random = (random * 1103515245 + 12345) % 2 ** 31
      return random % below
    }
    const round = async (count: number) => {
      const all = Array.from({ length: count }, async (_, i) => {
        const controller = new AbortController()
        const generation = llama.generate(ids(1 + next(60), i), { ...greedy, maxTokens: 1 + next(20), signal: controller.signal })
        const kind = next(4)
        const delay = next(12)
        for (let t = 0; t < delay; t++) await tick()
        if (kind === 1) generation.abort()
        if (kind === 2) controller.abort()
        await rejection(generation)
        expect(getEventListeners(controller.signal, 'abort')).toEqual([])
      })
      await Promise.all(all)
      idle(llama)
    }
    await round(200)
    const before = process.memoryUsage().rss
    await round(300)
    expect(process.memoryUsage().rss - before).toBeLessThan(64e6)
  })

  test('1000 generations leave no listener on their signal', async () => {
    const { signal } = new AbortController()
    const run = (i: number) => llama.generate([3 + (i % 500)], { ...greedy, maxTokens: 1, signal })
    await Promise.all(Array.from({ length: 1000 }, (_, i) => run(i)))
    for (const wrong of [() => llama.generate([], { signal }), () => llama.generate([3], { signal, stop: 'a' })])
      expect(wrong).toThrow()
    await llama.logits(ids(5), { signal })
    expect(getEventListeners(signal, 'abort')).toEqual([])
  })
})

describe('logits', () => {
  test('one row a token: the logits behind the log-probabilities of a generation', async () => {
    const prompt = ids(21)
    const { tokens, logprobs } = await llama.generate(prompt, { ...greedy, temperature: 1, seed: 3, maxTokens: 20 })
    const { vocab } = llama.config
    const logits = await llama.logits([...prompt, ...tokens])
    expect(logits.length).toBe(41 * vocab)
    for (const [i, id] of tokens.entries()) {
      const row = [...logits.subarray((20 + i) * vocab, (21 + i) * vocab)]
      const logSum = Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0))
      // float32: half an ulp of numbers up to 8, of the logit and of the sum
      expect(Math.abs(row[id]! - logSum - logprobs[i]!)).toBeLessThan(2e-6)
    }
  })

  test('however it is cut into chunks: the same bits', async () => {
    const tokens = ids(300)
    using device = open('cpu', { threads: 2 })
    const config = await readConfig(fixture)
    const model = await loadModel(device, fixture, config)
    const cache = () => device.tensor('bf16', [23, config.kvHeads, 16, config.headDim])
    const kv = Array.from({ length: config.layers }, () => ({ k: cache(), v: cache() }))
    const programs = new Programs(device, model, kv, { maxSequences: 1, maxPages: 22, maxRows: 1 })
    const whole = await llama.logits(tokens) // 128 + 128 + 44
    for (const cuts of [[300], [1, 300], [127, 129, 300], [5, 6, 7, 77, 205, 299, 300]]) {
      const all = new Float32Array(whole.length)
      const pages = Array.from({ length: 19 }, (_, i) => (i * 7 + cuts.length) % 23) // any order
      for (const [i, to] of cuts.entries()) {
        const from = cuts[i - 1] ?? 0
        const { buffers, program } = programs.evaluation(to - from)
        buffers.writeEvaluation(tokens, from, to, pages, 16)
        program.run()
        await device.read(program.outputs, all.subarray(from * config.vocab, to * config.vocab))
      }
      same(all, whole)
    }
  })

  test('beside generations and other logits: the same bits for all', async () => {
    const [tokens, prompt] = [ids(200), ids(30)]
    const alone = [await llama.generate(prompt, greedy), await llama.generate(ids(4), greedy)] as const
    const logits = await llama.logits(tokens)
    const running = [llama.generate(prompt, greedy), llama.logits(tokens), llama.generate(ids(4), greedy), llama.logits(tokens)]
    await tick()
    const [a, b, c, d] = await Promise.all(running)
    expect([a, c]).toEqual(alone)
    for (const result of [b, d]) same(result as Float32Array, logits)
  })

  test('wait for pages in order: a small one does not overtake a large one', async () => {
    await using small = await load({ kvCacheTokens: 512 })
    const order: number[] = []
    await Promise.all([300, 512, 20].map(length => small.logits(ids(length)).then(() => order.push(length))))
    expect(order).toEqual([300, 512, 20])
    idle(small)
  })

  test('are refused as prompts are, and stop with a signal, waiting or running', async () => {
    for (const [tokens, code] of [
      [[], 'ERR_PROMPT_EMPTY'],
      [[512], 'ERR_PROMPT_TOKEN'],
      [ids(513), 'ERR_PROMPT_TOO_LONG'],
      ['text', 'ERR_PROMPT_TYPE'],
    ] as const) {
      expect(await rejection(llama.logits(tokens as number[]))).toMatchObject({ name: 'InputError', code })
    }
    await using small = await load({ kvCacheTokens: 512 })
    expect((await small.logits(ids(512))).length).toBe(512 * 512)
    const controllers = Array.from({ length: 3 }, () => new AbortController())
    const running = controllers.map(({ signal }) => small.logits(ids(512), { signal }))
    const last = small.logits(ids(512))
    const generation = small.generate(ids(9), greedy) // waits behind all of them
    await tick()
    for (const i of [1, 0, 2]) {
      const reason = new Error(`stop ${i}`)
      controllers[i]!.abort(reason)
      expect(await rejection(running[i]!)).toBe(reason)
      expect(getEventListeners(controllers[i]!.signal, 'abort')).toEqual([])
    }
    same(await last, await llama.logits(ids(512)))
    expect((await generation).tokens.length).toBe(8)
    expect(await rejection(small.logits(ids(5), { signal: AbortSignal.abort(1) }))).toBe(1)
    idle(small)
  })
})

describe('close', () => {
  test('rejects everything that runs or waits, at once; later use is refused; twice is fine', async () => {
    const other = await load({ maxSequences: 2, kvCacheTokens: 512 })
    const generations = Array.from({ length: 5 }, (_, i) => other.generate(ids(100, i), { ...greedy, maxTokens: 100 }))
    await generations[0]![Symbol.asyncIterator]().next()
    const evaluations = Array.from({ length: 4 }, () => other.logits(ids(512)))
    const iterating = (async () => {
      for await (const _ of generations[1]!);
    })()
    await tick()
    const closing = [other.close(), other.close()]
    const errors = await Promise.all([...generations, ...evaluations, iterating].map(rejection))
    for (const error of errors) expect(error).toMatchObject({ name: 'ClosedError', code: 'ERR_CLOSED' })
    await Promise.all(closing)
    await other.close()
    const closed = expect.objectContaining({ name: 'ClosedError', code: 'ERR_CLOSED' })
    expect(() => other.generate([1])).toThrow(closed as never)
    expect(() => other.chat([])).toThrow(closed as never)
    expect(await rejection(other.logits([1]))).toEqual(closed)
    generations[0]!.abort()
    idle(other)
  })

  test('frees the memory while the model is still referenced, and the file', async () => {
    const config = { ...builtinConfigs['llama3.2-1b'], layers: 2, context: 512 } // 790 MB of weights
    const used = () => process.memoryUsage().rss
    for (let i = 0; i < 3; i++) {
      const random = await Llama.random(config, { ...cpu, maxSequences: 1 })
      await random.generate([5], { ...greedy, maxTokens: 1 })
      const held = used()
      await random.close()
      expect(held - used()).toBeGreaterThan(700e6)
      expect(random.stats().running).toBe(0)
    }
    const folder = await mkdtemp(join(tmpdir(), 'cria-close-'))
    await cp(fixture, folder, { recursive: true })
    const mapped = async () => (await readFile('/proc/self/maps', 'utf8')).includes(folder)
    const other = await load({}, folder)
    expect(await mapped()).toBe(true)
    await other.close()
    expect(await mapped()).toBe(false)
    await rm(folder, { recursive: true })
  })

  test('await using closes', async () => {
    let outside: Llama
    {
      await using inside = await load()
      outside = inside
      await inside.generate([5], greedy)
    }
    expect(() => outside.generate([1])).toThrow('closed')
  })
})

describe('a device that fails', () => {
  test.each(['read', 'record', 'write'])('in %s: everybody hears of it, and nobody waits for ever (F17)', async method => {
    using real = open('cpu', { threads: 1 })
    const config = await readConfig(fixture)
    const model = await loadModel(real, fixture, config)
    let calls = 0
    const failure = Object.assign(new Error('it fell off the bus'), { code: 'ERR_DEVICE_LOST' })
    const device = new Proxy(real, {
      get: (target, name) => {
        const value = Reflect.get(target, name, target)
        if (typeof value !== 'function') return value
        return (...args: unknown[]) => {
          const fails = name === method && armed && ++calls === (method === 'record' ? 1 : 5)
          if (fails && method !== 'read') throw failure
          return fails ? Promise.reject(failure) : value.apply(target, args)
        }
      },
    }) as Device
    let armed = false
    const limits = {
      context: 64,
      maxSequences: 2,
      maxBatchTokens: 64,
      maxQueue: 100,
      pageSize: 16,
      pages: 5,
      prefixCache: true,
      pipeline: true,
    }
    const engine = new Engine(device, model, config, limits)
    armed = true
    const job = () => {
      let settle!: (how: unknown) => void
      const ended = new Promise(resolve => {
        settle = resolve
      })
      const sequence = new Sequence(ids(9), 20, samplingParameters({ temperature: 0 }, config.defaults))
      return { sequence, ended, token: () => undefined, end: settle, fail: settle } satisfies Job & { ended: Promise<unknown> }
    }
    const jobs = [job(), job(), job(), job()]
    for (const one of jobs) engine.submit(one)
    for (let i = 0; i < 5; i++) await null // the first step is on its way
    const evaluation = rejection(engine.evaluate(ids(64))) // waits for pages
    const dies = method === 'read' // otherwise nothing was enqueued: those of that step fail, and the engine goes on
    const ends = await Promise.all(jobs.map(one => one.ended))
    expect(ends).toEqual(dies ? [failure, failure, failure, failure] : [failure, failure, 'length', 'length'])
    expect(await evaluation).toBe(dies ? failure : 'resolved')
    const next = job()
    if (dies) expect(() => engine.submit(next)).toThrow(failure)
    else engine.submit(next)
    if (!dies) expect(await next.ended).toBe('length')
    expect(engine.stats).toMatchObject({ running: 0, waiting: 0, pages: { total: 5, used: 0 } })
  })
})
