// How a process ends while cria is at work (F36): as plain Node would, at once, and never by a crash. In child processes.
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, expect, test } from '@jest/globals'

const library = join(import.meta.dirname, '../../dist/lib/index.js')
if (!existsSync(library)) throw new Error(`${library} is missing: npm run build:ts`)

interface End {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
  /** From the word 'ready' on; all of it without. */
  milliseconds: number
}

/** Runs an ES module. When it says 'ready', it gets the signal, if there is one. */
function child(source: string, kill?: NodeJS.Signals): Promise<End> {
  return new Promise((resolve, reject) => {
    const node = spawn(process.execPath, ['--input-type=module', '-e', source], { stdio: ['ignore', 'pipe', 'pipe'] })
    const end = { stdout: '', stderr: '' }
    let from = performance.now()
    const timer = setTimeout(() => node.kill('SIGKILL'), 20_000)
    node.stdout.on('data', (text: Buffer) => {
      const before = end.stdout.includes('ready')
      end.stdout += text
      if (before || !end.stdout.includes('ready')) return
      from = performance.now()
      if (kill) node.kill(kill)
    })
    node.stderr.on('data', (text: Buffer) => {
      end.stderr += text
    })
    node.on('error', reject)
    node.on('close', (code, signal) => {
      clearTimeout(timer)
      resolve({ code, signal, milliseconds: performance.now() - from, ...end })
    })
  })
}

const imports = `
  import { setTimeout as sleep } from 'node:timers/promises'
  import { writeSync } from 'node:fs'
  import { isMainThread, parentPort, Worker } from 'node:worker_threads'
  import { Llama } from ${JSON.stringify(pathToFileURL(library).href)}
  const ready = () => isMainThread ? writeSync(1, 'ready') : parentPort.postMessage('ready')
`
/** Code that brings the process into a state, and then says so. */
const states = {
  loading: `
    let first = true
    void Llama.load('demo').catch(() => {})
    void Llama.load('demo', { onProgress: () => {
      if (first) { first = false; ready(); act() }
    } }).catch(() => {})`,
  prefill: `
    const llama = await Llama.load('demo')
    void llama.generate(Array.from({ length: 1000 }, (_, i) => i)).then(() => {}, () => {})
    void llama.logits(Array.from({ length: 1000 }, (_, i) => i)).catch(() => {})
    for (let i = 0; llama.stats().running === 0 && i < 1000; i++) await null
    if (llama.stats().running !== 1) throw new Error('not running')
    ready(); act()`,
  decode: `
    const llama = await Llama.load('demo')
    const many = Array.from({ length: 8 }, () => llama.generate('The', { ignoreEos: true, temperature: 0 }))
    let seen = 0
    for await (const piece of many[0]) if (++seen === 5) { ready(); act() }`,
  idle: `
    const llama = await Llama.load('demo')
    await llama.generate('The', { maxTokens: 3 })
    ready(); act()`,
}
const keepAlive = 'const stay = setInterval(() => {}, 1000)'

const ends: Record<string, { act: string; kill?: NodeJS.Signals; expected: Partial<End> }> = {
  'process.exit(7)': { act: 'process.exit(7)', expected: { code: 7, signal: null, stderr: '' } },
  'an uncaught error': {
    act: `process.nextTick(() => { throw new Error('mine') })`,
    expected: { code: 1, signal: null, stderr: expect.stringContaining('Error: mine') as never },
  },
  SIGTERM: { act: keepAlive, kill: 'SIGTERM', expected: { code: null, signal: 'SIGTERM', stderr: '' } },
  SIGINT: { act: keepAlive, kill: 'SIGINT', expected: { code: null, signal: 'SIGINT', stderr: '' } },
}

describe.each(Object.entries(states))('while %s', (_, state) => {
  test.concurrent.each(Object.entries(ends))('%s', async (_, { act, kill, expected }) => {
    const end = await child(`${imports}\nconst act = () => { ${act} }\n${state}`, kill)
    expect(end).toMatchObject({ stdout: 'ready', ...expected })
    expect(end.milliseconds).toBeLessThan(3000)
  })

  test('worker.terminate(), and the main thread goes on with a model of its own', async () => {
    const worker = `${imports}\nconst act = () => {}\n${keepAlive}\n${state}`
    const end = await child(`${imports}
      const own = await Llama.load('demo')
      const options = { maxTokens: 5, temperature: 0 }
      const before = await own.generate('The', options)
      const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(worker)}))
      for (let i = 0; i < 2; i++) {
        const worker = new Worker(url)
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
        if (await worker.terminate() !== 1) throw new Error('the worker ended by itself')
      }
      const after = await own.generate('The', options)
      await own.close()
      console.log(JSON.stringify(after) === JSON.stringify(before) ? 'same' : 'different')`)
    expect(end).toMatchObject({ code: 0, signal: null, stdout: 'same\n', stderr: '' })
  })
})

describe('a process ends by itself', () => {
  const load = `${imports}\nconst llama = await Llama.load('demo')\n`
  test.concurrent.each<[string, string]>([
    ['after close()', `await llama.generate('The', { maxTokens: 3 }); await llama.close(); ready()`],
    ['without close(), idle', `await llama.generate('The', { maxTokens: 3 }); ready()`],
    ['without close(), never used', 'ready()'],
    ['and finishes first what runs', `llama.generate('The', { maxTokens: 40, ignoreEos: true }).then(() => ready())`],
    ['after close() in the middle', `llama.generate('The').then(null, () => {}); await sleep(5); await llama.close(); ready()`],
  ])('%s', async (_, rest) => {
    const end = await child(load + rest)
    expect(end).toMatchObject({ code: 0, signal: null, stdout: 'ready', stderr: '' })
    expect(end.milliseconds).toBeLessThan(3000)
  })
})

describe('nothing comes unasked', () => {
  test('no unhandled rejection, no warning, no output: failures that nobody looks at', async () => {
    const end = await child(`${imports}
      process.on('unhandledRejection', reason => writeSync(1, 'unhandled: ' + reason))
      process.on('warning', warning => writeSync(1, 'warning: ' + warning))
      const llama = await Llama.load('demo', { maxSequences: 2 })
      const controller = new AbortController()
      const all = Array.from({ length: 30 }, () => llama.generate('The', { signal: controller.signal, ignoreEos: true }))
      llama.generate('The', { signal: AbortSignal.abort() })
      const iterator = llama.generate('The', { signal: controller.signal })[Symbol.asyncIterator]()
      await all[0][Symbol.asyncIterator]().next()
      all[1].abort()
      controller.abort()
      await sleep(20)
      for (let i = 0; i < 10; i++) llama.generate('The')
      await sleep(20)
      await llama.close()
      await sleep(50)
      ready()`)
    expect(end).toMatchObject({ code: 0, signal: null, stdout: 'ready', stderr: '' })
  })

  test('workers load, generate and end by themselves, several at once', async () => {
    const worker = `${imports}
      const llama = await Llama.load('demo', { threads: 1 })
      parentPort.postMessage((await llama.generate('The', { maxTokens: 5, temperature: 0 })).text)`
    const end = await child(`${imports}
      const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(worker)}))
      const texts = await Promise.all(Array.from({ length: 3 }, () => new Promise((resolve, reject) => {
        let text
        new Worker(url).on('message', value => { text = value }).on('error', reject).on('exit', code => resolve(text + code))
      })))
      console.log(new Set(texts).size, /^.+0$/s.test(texts[0]))`)
    expect(end).toMatchObject({ code: 0, signal: null, stdout: '1 true\n', stderr: '' })
  })
})
