/**
 * Structured output: which tokens a format allows next. Formats are compiled and masks computed in threads of their own
 * (grammar_worker.ts), never on the event loop.
 */

import { availableParallelism } from 'node:os'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { ClosedError, errorFor, InputError } from './errors.ts'
import type { Reply, Request, WorkerData } from './grammar_worker.ts'
import { show } from './sampling.ts'

/**
 * What an answer must look like as a whole. A format is compiled once, in a thread; bounds of repetitions are dear: with
 * 128,256 tokens a string of maxLength 100 took 4 s, one of 20 0.6 s, and one without a bound 0.4 s (2 cores).
 */
export type Format =
  /** Any JSON value. */
  | { readonly type: 'json' }
  /** JSON that satisfies a schema, given as an object or as its text; see grammar_schema.ts for what can be held. */
  | { readonly type: 'jsonSchema'; readonly schema: object | string }
  /** A regular expression in JavaScript's syntax with the flag u, without assertions and back references. */
  | { readonly type: 'regex'; readonly pattern: string }
  /** EBNF as xgrammar has it; the answer is what the rule root stands for. */
  | { readonly type: 'grammar'; readonly grammar: string }

/** What formats may cost. */
export interface GrammarOptions {
  /** Characters of a schema, a pattern or a grammar. Default 65,536. */
  readonly textLength?: number
  /** Schemas, groups or parentheses inside of each other. Default 64. */
  readonly depth?: number
  /** Rules of a grammar, after repetitions are written out. Default 10,000. */
  readonly rules?: number
  /** Milliseconds to compile a format, or to compute one mask. Default 10,000. */
  readonly time?: number
  /** Bytes of memory of a thread's WebAssembly; an answer takes some 1000 bytes a token. Default 1 GiB. */
  readonly memory?: number
  /** Threads. A format that takes long to compile holds up the others of its thread. Default: one for four cores, from 2 to 8. */
  readonly threads?: number
}

/** What is needed of a tokenizer. */
export interface TokenTable {
  readonly size: number
  isSpecial(id: number): boolean
  bytes(id: number): Uint8Array
}

/** Follows one answer. */
export interface Matcher {
  /**
   * The tokens that may come next: bit id % 32 of word floor(id / 32), of ceil(vocab / 32) words. Undefined while it is
   * computed. Special tokens never may, but for stop tokens where the answer may end.
   */
  readonly mask: Int32Array | undefined
  /** Whether only a stop token may follow, or one has come. */
  readonly ended: boolean
  /**
   * Takes the next token, and resolves when `mask` is that for the one after it.
   * @throws InputError ERR_FORMAT_TOKEN: the mask does not allow it, nothing has changed; ERR_FORMAT_TIME, ERR_FORMAT_FAILED:
   *   the matcher is of no more use. ClosedError ERR_DISPOSED, ERR_CLOSED.
   */
  accept(id: number): Promise<void>
  /** Frees what it holds in its thread. May be called again. */
  dispose(): void
}

/** Answers that one thread follows before another one compiles the format, too. */
const crowd = 8

/** The formats of a model. */
export class Grammars {
  readonly #tokens: TokenTable
  readonly #vocab: number
  readonly #stopTokens: readonly number[]
  readonly #options: Required<GrammarOptions>
  readonly #threads = new Set<Thread>()
  #data: Promise<WorkerData> | undefined
  #closed = false

  /** vocab: the width of the logits, at least tokens.size. Threads start with the first format. */
  constructor(tokens: TokenTable, vocab: number, stopTokens: readonly number[], options: GrammarOptions = {}) {
    this.#tokens = tokens
    this.#vocab = vocab
    this.#stopTokens = stopTokens
    const threads = Math.min(8, Math.max(2, Math.floor(availableParallelism() / 4)))
    this.#options = { textLength: 2 ** 16, depth: 64, rules: 10_000, time: 10_000, memory: 2 ** 30, threads, ...options }
  }

  /**
   * A matcher at the beginning of an answer, when its mask is there.
   * @throws InputError ERR_FORMAT_TYPE, ERR_FORMAT_SCHEMA, ERR_FORMAT_REGEX, ERR_FORMAT_GRAMMAR: what is wrong with the format;
   *   ERR_FORMAT_EMPTY: no text satisfies it; ERR_FORMAT_SIZE, ERR_FORMAT_TIME, ERR_FORMAT_FAILED: it asks for too much;
   *   ClosedError ERR_CLOSED; the reason of the signal
   */
  async open(format: Format, signal?: AbortSignal): Promise<Matcher> {
    const source = sourceOf(format, this.#options.textLength)
    signal?.throwIfAborted()
    this.#check()
    this.#data ??= this.#table()
    const data = await this.#data
    signal?.throwIfAborted()
    this.#check()
    const thread = this.#thread(source, data)
    const following = new Following(source, this.#stopTokens, thread)
    const opened = thread.open(following)
    const abort = () => following.fail(signal!.reason)
    signal?.addEventListener('abort', abort, { once: true })
    try {
      await opened
      return following
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  /** Ends the threads and all matchers. May be called again. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.all([...this.#threads].map(thread => thread.close()))
  }

  #check(): void {
    if (this.#closed) throw new ClosedError('ERR_CLOSED', 'the model was closed; load it again')
  }

  /** One that has compiled the format and is not crowded, one without work, a new one, or the one with the least work. */
  #thread(source: Source, data: WorkerData): Thread {
    const threads = [...this.#threads].sort((a, b) => a.matchers - b.matchers)
    const ready = threads.find(thread => thread.knows(source) && thread.matchers < crowd) ?? threads.find(thread => thread.isIdle)
    if (ready) return ready
    if (threads.length >= this.#options.threads) return threads[0]!
    const thread = new Thread(data, this.#options.time)
    this.#threads.add(thread)
    return thread
  }

  /** What a thread must know of the tokens, shared by all; made in slices, so that others get their turns. */
  async #table(): Promise<WorkerData> {
    const ends = new Int32Array(new SharedArrayBuffer(this.#vocab * 4))
    let bytes = new Uint8Array(2 ** 16)
    let end = 0
    for (let id = 0, since = performance.now(); id < this.#vocab; id++) {
      const token = id < this.#tokens.size && !this.#tokens.isSpecial(id) ? this.#tokens.bytes(id) : []
      if (end + token.length > bytes.length) {
        const larger = new Uint8Array(2 * (end + token.length))
        larger.set(bytes)
        bytes = larger
      }
      bytes.set(token, end)
      end += token.length
      ends[id] = end
      if (id % 64 > 0 || performance.now() - since < 3) continue
      await turn()
      since = performance.now()
    }
    const shared = new Uint8Array(new SharedArrayBuffer(end))
    shared.set(bytes.subarray(0, end))
    const { depth, rules, memory } = this.#options
    return { bytes: shared, ends, stopTokens: this.#stopTokens, limits: { depth, rules }, memory }
  }
}

/** A format as it is sent to a thread. */
interface Source {
  readonly type: Format['type']
  readonly text: string
}

const fields = { json: undefined, jsonSchema: 'schema', regex: 'pattern', grammar: 'grammar' } as const

function sourceOf(format: Format, most: number): Source {
  const { type, ...rest } = Object(format) as { type: Format['type'] } & Record<string, unknown>
  if (!Object.hasOwn(fields, type)) {
    const expected = `expected { type } with type ${Object.keys(fields).join(', ')}`
    throw new InputError('ERR_FORMAT_TYPE', `format is ${show(format)}, ${expected}`)
  }
  const field = fields[type]
  const other = Object.keys(rest).find(name => name !== field)
  if (other !== undefined) throw new InputError('ERR_FORMAT_TYPE', `format of type ${type} has no ${other}`)
  const value = field && rest[field]
  let text = value
  try {
    if (type === 'jsonSchema' && typeof value === 'object') text = JSON.stringify(value)
  } catch (cause) {
    throw new InputError('ERR_FORMAT_SCHEMA', `the schema is not JSON: ${(cause as Error).message}`, { cause })
  }
  if (field === undefined) return { type, text: '' }
  if (typeof text !== 'string') {
    const expected = type === 'jsonSchema' ? 'an object or JSON' : 'a string'
    throw new InputError('ERR_FORMAT_TYPE', `format.${field} is ${show(value)}, expected ${expected}`)
  }
  if (text.length <= most) return { type, text }
  throw new InputError('ERR_FORMAT_SIZE', `format.${field} has ${text.length} characters, expected at most ${most}`)
}

/** An answer that is followed, in whichever thread. */
class Following implements Matcher {
  readonly source: Source
  readonly tokens: number[] = [] // so far; another thread can go on from them
  mask: Int32Array | undefined
  ended = false
  readonly #stopTokens: readonly number[]
  readonly #thread: Thread
  #over: unknown // why there are no more masks
  #settle: { resolve: () => void; reject: (reason: unknown) => void } | undefined

  constructor(source: Source, stopTokens: readonly number[], thread: Thread) {
    this.source = source
    this.#stopTokens = stopTokens
    this.#thread = thread
  }

  /** Resolves with the next mask. */
  next(): Promise<void> {
    this.mask = undefined
    return new Promise((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
  }

  give(mask: Int32Array, ended: boolean): void {
    this.mask = mask
    this.ended = ended
    this.#settle?.resolve()
  }

  /** A mask that is there stays: who waits for nothing learns of it with the next token. */
  fail(reason: unknown): void {
    this.#over ??= reason
    this.#settle?.reject(this.#over)
    this.#thread.forget(this)
  }

  async accept(id: number): Promise<void> {
    if (this.#over !== undefined) throw this.#over
    if (!this.mask) throw new InputError('ERR_FORMAT_TOKEN', `token ${show(id)} comes before its mask; await what came before`)
    const isId = Number.isInteger(id) && id >= 0 && id < 32 * this.mask.length
    if (!isId || (this.mask[id >> 5]! & (1 << (id & 31))) === 0) {
      throw new InputError('ERR_FORMAT_TOKEN', `token ${show(id)} is not one that the format allows here`)
    }
    if (this.#stopTokens.includes(id)) {
      this.mask = new Int32Array(this.mask.length)
      this.ended = true
      return
    }
    await this.#thread.accept(this, id)
  }

  dispose(): void {
    this.fail(new ClosedError('ERR_DISPOSED', 'the matcher was disposed of'))
  }
}

/** In jest the library runs from its sources, and its threads from what these were compiled to last. */
const code = new URL(import.meta.url.endsWith('.ts') ? '../dist/lib/grammar_worker.js' : './grammar_worker.js', import.meta.url)

/** A question to a thread. `again`: the thread is a new one, and the answer is known. */
interface Waiting {
  readonly following: Following
  readonly again: boolean
}

/** A thread that is started when there is work, and anew when it fails. */
class Thread {
  readonly #data: WorkerData
  readonly #time: number
  readonly #ids = new Map<Following, number>()
  #next = 0
  #worker: Worker | undefined
  #begun = false
  #waiting: Waiting[] = [] // in the order of the answers
  #timer: NodeJS.Timeout | undefined

  constructor(data: WorkerData, time: number) {
    this.#data = data
    this.#time = time
  }

  get matchers(): number {
    return this.#ids.size
  }

  get isIdle(): boolean {
    return this.#ids.size === 0 && this.#waiting.length === 0
  }

  knows(source: Source): boolean {
    return [...this.#ids.keys()].some(other => isSame(other.source, source))
  }

  open(following: Following): Promise<void> {
    this.#ids.set(following, this.#next++)
    const mask = following.next()
    this.#begin(following, false)
    return mask
  }

  accept(following: Following, token: number): Promise<void> {
    const mask = following.next()
    following.tokens.push(token)
    this.#ask({ id: this.#ids.get(following)!, token }, following, false)
    return mask
  }

  forget(following: Following): void {
    const id = this.#ids.get(following)
    if (id === undefined) return
    this.#ids.delete(following)
    this.#worker?.postMessage({ id, dispose: true } satisfies Request)
  }

  async close(): Promise<void> {
    const worker = this.#stop()
    const closed = new ClosedError('ERR_CLOSED', 'the model was closed; load it again')
    for (const following of [...this.#ids.keys()]) following.fail(closed)
    await worker?.terminate()
  }

  #begin(following: Following, again: boolean): void {
    const { source, tokens } = following
    this.#ask({ id: this.#ids.get(following)!, ...source, tokens }, following, again)
  }

  #ask(request: Request, following: Following, again: boolean): void {
    this.#worker ??= this.#start()
    this.#worker.postMessage(request)
    this.#waiting.push({ following, again })
    if (this.#waiting.length === 1) this.#watch()
  }

  #start(): Worker {
    const worker = new Worker(code, { workerData: this.#data, execArgv: [] })
    const fail = (why: string) => worker === this.#worker && this.#replace('ERR_FORMAT_FAILED', why)
    worker.on('message', (reply: Reply) => {
      if (worker !== this.#worker) return
      if (reply.fatal === undefined) this.#hear(reply)
      else fail(`xgrammar failed: ${reply.fatal}`)
    })
    worker.on('error', error => fail(`its thread failed: ${error.message}`))
    worker.on('exit', exit => fail(`its thread ended with code ${exit}`))
    return worker
  }

  #hear({ ready, mask, ended = false, error }: Reply): void {
    if (ready) this.#begun = true
    else {
      const { following, again } = this.#waiting.shift()!
      if (error) following.fail(errorFor(error.code, error.message))
      else if (mask && !again) following.give(mask, ended)
    }
    this.#watch()
  }

  /** While there is work it has a time limit, and keeps the process alive. */
  #watch(): void {
    clearTimeout(this.#timer)
    const [at] = this.#waiting
    if (at) this.#worker?.ref()
    else this.#worker?.unref()
    if (!at || !this.#begun) return // to begin takes as long as it takes
    const why = `it takes more than ${this.#time} ms; make it simpler, above all what is repeated a number of times`
    const late = () => at === this.#waiting[0] && this.#replace('ERR_FORMAT_TIME', why)
    this.#timer = setTimeout(() => setImmediate(late), this.#time) // an answer may lie here that nobody had the time to read
  }

  #stop(): Worker | undefined {
    const worker = this.#worker
    this.#worker = undefined
    this.#begun = false
    this.#waiting = []
    clearTimeout(this.#timer)
    return worker
  }

  /** The format that was at work fails for all; the others go on in a new thread. */
  #replace(why: string, message: string): void {
    const waiting = this.#waiting
    void this.#stop()?.terminate()
    for (const following of [...this.#ids.keys()]) {
      const isGuilty = waiting[0] && isSame(following.source, waiting[0].following.source)
      if (isGuilty) following.fail(new InputError(why, `the format cannot be used: ${message}`))
      else this.#begin(following, !waiting.some(other => other.following === following && !other.again))
    }
  }
}

const isSame = (a: Source, b: Source) => a.type === b.type && a.text === b.text
