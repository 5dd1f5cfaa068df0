/** The loop: schedule -> write the step -> run -> read the tokens -> settle. One step after the other while there is work. */
import type { Device, KvLayer } from '../binding.d.ts'
import type { LlamaConfig } from './config.ts'
import { ClosedError, InputError, NumericError } from './errors.ts'
import { Pages } from './pages.ts'
import { Programs } from './programs.ts'
import { type Batch, Scheduler } from './scheduler.ts'
import type { FinishReason, Sequence } from './sequence.ts'
import type { Model } from './weights.ts'

export interface EngineLimits {
  /** Longest sequence, in tokens. */
  readonly context: number
  /** Sequences in one step. */
  readonly maxSequences: number
  /** Tokens in one step; at least the context. */
  readonly maxBatchTokens: number
  /** Tokens of a page. */
  readonly pageSize: number
  /** Pages of the key/value cache. */
  readonly pages: number
}

/** A sequence in the engine and who wants to hear of it. Exactly one of end and fail is called, once, and then nothing more. */
export interface Job {
  readonly sequence: Sequence
  /** Takes a token and its log-probability; returns why the sequence ends here, or undefined to go on. */
  token(id: number, logprob: number): FinishReason | undefined
  end(reason: FinishReason): void
  fail(error: Error): void
}

/** What the engine does now and has done since load. */
export interface EngineStats {
  /** Sequences in the step, and in the queue for it. */
  readonly running: number
  readonly waiting: number
  /** Pages of the key/value cache. */
  readonly pages: { readonly total: number; readonly free: number; readonly size: number }
  /** Prompt tokens computed and tokens generated since load. */
  readonly promptTokens: number
  readonly generatedTokens: number
  /** Steps since load, and the time they took in all, in milliseconds. */
  readonly steps: number
  readonly stepMilliseconds: number
}

/** An evaluation that waits for pages. */
interface Waiting {
  readonly pages: number
  take(pages: number[]): void
  fail(error: unknown): void
}

/** Rows of logits that an evaluation computes at once: 128 x 128256 x 4 bytes are 66 MB. */
const evaluationRows = 128
/** Of an evaluation: 2^32 bytes, which every version of Node allows in one array. */
const mostLogits = 2 ** 30

export class Engine {
  readonly #device: Device
  readonly #vocab: number
  readonly #pages: Pages
  readonly #scheduler: Scheduler
  readonly #programs: Programs
  readonly #kv: readonly KvLayer[]
  readonly #jobs = new Map<Sequence, Job>()
  readonly #evaluations = new Set<Waiting>()
  readonly #counts = { promptTokens: 0, generatedTokens: 0, steps: 0, stepMilliseconds: 0 }
  #looping = false
  #wake: (() => void) | undefined
  #failure: Error | undefined

  constructor(device: Device, model: Model, config: LlamaConfig, limits: EngineLimits) {
    this.#device = device
    this.#vocab = config.vocab
    // The cache first: when it is too large for the device, nothing of its size has been made yet.
    const shape = [limits.pages, config.kvHeads, limits.pageSize, config.headDim]
    const cache = () => device.tensor(device.activation, shape) as KvLayer['k']
    this.#kv = Array.from({ length: config.layers }, () => ({ k: cache(), v: cache() }))
    this.#pages = new Pages(limits.pages, limits.pageSize)
    this.#scheduler = new Scheduler(this.#pages, limits)
    const maxPages = Math.min(limits.pages, this.#pages.needed(limits.context))
    this.#programs = new Programs(device, model, this.#kv, { maxSequences: limits.maxSequences, maxPages })
  }

  get stats(): EngineStats {
    const { running, waiting } = this.#scheduler
    return {
      running,
      waiting,
      pages: { total: this.#pages.count, free: this.#pages.free, size: this.#pages.size },
      ...this.#counts,
    }
  }

  /**
   * Takes a job in; it runs in the next step that has room.
   * @throws InputError ERR_OPTION_KV_CACHE: the cache can never hold it; DeviceError, ClosedError: the engine has ended
   */
  submit(job: Job): void {
    if (this.#failure) throw this.#failure
    const { promptLength, maxTokens } = job.sequence
    this.#refuseTooLarge(this.#scheduler.pagesFor(promptLength, maxTokens), `${promptLength} + ${maxTokens} tokens`)
    this.#jobs.set(job.sequence, job)
    this.#scheduler.add(job.sequence)
    this.#start()
  }

  /** Ends a job now, whatever state it is in; its pages are free for the next step. */
  abort(sequence: Sequence): void {
    this.#finish(sequence)?.end('abort')
  }

  /**
   * Logits [tokens, vocab] of a sequence, each row those of the token after it, row by row as in a generation.
   * @throws as submit
   */
  async evaluate(tokens: readonly number[], signal?: AbortSignal): Promise<Float32Array> {
    const needed = this.#pages.needed(tokens.length)
    this.#refuseTooLarge(needed, `${tokens.length} tokens`)
    if (tokens.length * this.#vocab > mostLogits) {
      const found = `the logits of ${tokens.length} tokens are ${tokens.length} x ${this.#vocab} numbers`
      const most = Math.floor(mostLogits / this.#vocab)
      throw new InputError('ERR_PROMPT_TOO_LONG', `${found}, more than an array holds; evaluate at most ${most} tokens at a time`)
    }
    const pages = await this.#takePages(needed, signal)
    try {
      const all = new Float32Array(tokens.length * this.#vocab)
      for (let from = 0; from < tokens.length; from += evaluationRows) {
        if (this.#failure) throw this.#failure
        signal?.throwIfAborted()
        const to = Math.min(tokens.length, from + evaluationRows)
        const { buffers, program } = this.#programs.evaluation(to - from)
        buffers.writeEvaluation(tokens, from, to, pages, this.#pages.size)
        program.run()
        await this.#device.read(program.outputs, all.subarray(from * this.#vocab, to * this.#vocab))
      }
      return all
    } finally {
      this.#pages.release(pages)
      this.#released()
    }
  }

  /** Ends every job with `error` and refuses all later ones. */
  close(error: Error = new ClosedError('ERR_CLOSED', 'the model was closed')): void {
    this.#failure ??= error
    for (const sequence of [...this.#jobs.keys()]) this.#finish(sequence)?.fail(this.#failure)
    for (const waiting of this.#evaluations) waiting.fail(this.#failure)
    this.#evaluations.clear()
    this.#released()
  }

  #refuseTooLarge(pages: number, what: string): void {
    if (pages <= this.#pages.count) return
    const size = this.#pages.count * this.#pages.size
    const way = 'shorten the prompt, lower maxTokens or load the model with a larger kvCacheTokens'
    throw new InputError('ERR_OPTION_KV_CACHE', `${what} never fit into a key/value cache of ${size} tokens; ${way}`)
  }

  /** Waits, first come, first served, and before any sequence that has not started. */
  async #takePages(pages: number, signal: AbortSignal | undefined): Promise<number[]> {
    if (this.#failure) throw this.#failure
    signal?.throwIfAborted()
    let stop!: () => void
    try {
      return await new Promise<number[]>((take, fail) => {
        const waiting = { pages, take, fail }
        stop = () => {
          this.#evaluations.delete(waiting)
          fail(signal!.reason)
          this.#released()
        }
        signal?.addEventListener('abort', stop)
        this.#evaluations.add(waiting)
        this.#released()
      })
    } finally {
      signal?.removeEventListener('abort', stop)
    }
  }

  /** Pages may be free: whoever waits for them may go on. */
  #released(): void {
    for (const waiting of this.#evaluations) {
      const pages = this.#pages.take(waiting.pages)
      if (!pages) break
      this.#evaluations.delete(waiting)
      waiting.take(pages)
    }
    this.#wake?.()
  }

  #start(): void {
    this.#wake?.()
    if (this.#looping) return
    this.#looping = true
    // In a microtask: jobs submitted together share their first step.
    void Promise.resolve().then(() => this.#loop())
  }

  async #loop(): Promise<void> {
    try {
      while (this.#jobs.size > 0) {
        const batch = this.#scheduler.schedule(this.#evaluations.size === 0)
        if (batch.length > 0) await this.#step(batch)
        else
          await new Promise<void>(resolve => {
            this.#wake = resolve
          })
      }
    } catch (error) {
      this.close(error as Error)
    } finally {
      this.#looping = false
    }
  }

  async #step(batch: Batch): Promise<void> {
    const started = performance.now()
    const tokens = batch.reduce((sum, sequence) => sum + sequence.pending, 0)
    const { buffers, program } = this.#programs.generation(tokens)
    buffers.writeBatch(batch, this.#pages.size)
    program.run()
    const { ids, logprobs, status } = program.outputs
    const [id, logprob, failed] = await Promise.all([
      this.#device.read(ids, new Int32Array(batch.length)),
      this.#device.read(logprobs, new Float32Array(batch.length)),
      this.#device.read(status, new Int32Array(batch.length)),
    ])
    this.#counts.steps++
    this.#counts.stepMilliseconds += performance.now() - started
    for (const [s, sequence] of batch.entries()) {
      if (sequence.generated === 0) this.#counts.promptTokens += sequence.promptLength
      if (this.#jobs.has(sequence)) this.#settle(sequence, id[s]!, logprob[s]!, failed[s] !== 0)
    }
  }

  #settle(sequence: Sequence, id: number, logprob: number, failed: boolean): void {
    if (failed) {
      const where = `after ${sequence.tokens.length} tokens`
      const why = 'the weights are damaged, or do not belong to config.json'
      this.#finish(sequence)?.fail(new NumericError('ERR_NOT_FINITE', `the logits ${where} are not finite: ${why}`))
      return
    }
    sequence.computed = sequence.tokens.length
    sequence.tokens.push(id)
    this.#counts.generatedTokens++
    let reason: FinishReason | undefined
    try {
      reason = this.#jobs.get(sequence)!.token(id, logprob)
    } catch (error) {
      this.#finish(sequence)?.fail(error as Error)
      return
    }
    if (!reason && sequence.generated >= sequence.maxTokens) reason = 'length'
    if (reason) this.#finish(sequence)?.end(reason)
  }

  /** Takes a job out; undefined when it is out already. */
  #finish(sequence: Sequence): Job | undefined {
    const job = this.#jobs.get(sequence)
    if (!job) return undefined
    this.#jobs.delete(sequence)
    this.#scheduler.remove(sequence)
    this.#released()
    return job
  }
}
