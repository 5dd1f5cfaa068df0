/** The loop: schedule -> write the step -> run -> read the tokens of the step before -> settle them. */
import type { Device, KvLayer } from '../binding.d.ts'
import type { LlamaConfig } from './config.ts'
import { ClosedError, InputError, NumericError } from './errors.ts'
import { busy, Evaluations } from './evaluations.ts'
import { Pages } from './pages.ts'
import { Programs } from './programs.ts'
import { type Results, readResults, sizeOf, type TokenLogprob, topOf } from './results.ts'
import { type Batch, mostMoreRows, Scheduler, type Work } from './scheduler.ts'
import type { FinishReason, Sequence } from './sequence.ts'
import type { StepBuffers } from './step.ts'
import type { Model } from './weights.ts'

export interface EngineLimits {
  /** Longest sequence, in tokens. */
  readonly context: number
  /** Sequences in one step. */
  readonly maxSequences: number
  /** Tokens in one step; at least maxSequences. */
  readonly maxBatchTokens: number
  /** Sequences that wait; more are refused. */
  readonly maxQueue: number
  /** Tokens of a page. */
  readonly pageSize: number
  /** Pages of the key/value cache. */
  readonly pages: number
  /** Whether sequences may begin with what is in the cache. */
  readonly prefixCache: boolean
  /** Whether a step is prepared while the one before it runs. */
  readonly pipeline: boolean
}

/** A sequence in the engine and who wants to hear of it. Exactly one of end and fail is called, once, and then nothing more. */
export interface Job {
  readonly sequence: Sequence
  /**
   * Takes a token, its log-probability, and the most probable ones if they were asked for; returns why the sequence ends
   * here, or undefined to go on.
   */
  token(id: number, logprob: number, top: readonly TokenLogprob[]): FinishReason | undefined
  /** Takes the log-probability of a token of the prompt, and the most probable ones there. */
  scored?(position: number, logprob: number, top: readonly TokenLogprob[]): void
  end(reason: FinishReason): void
  fail(error: Error): void
}

/** What the engine does now and has done since load. */
export interface EngineStats {
  /** Sequences in the step, and in the queue for it. */
  readonly running: number
  readonly waiting: number
  /** Pages of the key/value cache: in use, free, and cached: in nobody's use, but with content that may be wanted again. */
  readonly pages: {
    readonly total: number
    readonly used: number
    readonly cached: number
    readonly free: number
    readonly size: number
  }
  /** Prompt tokens taken in, those of them found in the cache when a sequence first started, tokens generated. */
  readonly promptTokens: number
  readonly cachedTokens: number
  readonly generatedTokens: number
  /** Times that a sequence had to give up its pages and start again. */
  readonly preemptions: number
  /** Steps that have run, the time with a step under way or waiting for a mask, and the host's part of it, in milliseconds. */
  readonly steps: number
  readonly stepMilliseconds: number
  readonly hostMilliseconds: number
}

/** A step that is enqueued. */
interface Flight {
  readonly work: readonly Work[]
  /** Of the rows that went through the head. */
  readonly results: Promise<Results>
}

/** Milliseconds that a step waits for masks: of 128,256 tokens most take 0.1 to 0.3; a slow one must not hold up everybody. */
const patience = 1

export class Engine {
  readonly #device: Device
  readonly #pages: Pages
  readonly #scheduler: Scheduler
  readonly #programs: Programs
  readonly #kv: readonly KvLayer[]
  readonly #jobs = new Map<Sequence, Job>()
  readonly #evaluations: Evaluations
  readonly #counts = { promptTokens: 0, generatedTokens: 0, steps: 0, stepMilliseconds: 0, hostMilliseconds: 0 }
  readonly #limits: EngineLimits
  #looping = false
  #wake: (() => void) | undefined
  #failure: Error | undefined

  constructor(device: Device, model: Model, config: LlamaConfig, limits: EngineLimits) {
    this.#device = device
    // The cache first: when it is too large for the device, nothing of its size has been made yet.
    const shape = [limits.pages, config.kvHeads, limits.pageSize, config.headDim]
    const cache = () => device.tensor(device.activation, shape) as KvLayer['k']
    this.#kv = Array.from({ length: config.layers }, () => ({ k: cache(), v: cache() }))
    this.#pages = new Pages(limits.pages, limits.pageSize)
    this.#scheduler = new Scheduler(this.#pages, limits)
    const maxPages = Math.min(limits.pages, this.#pages.needed(limits.context))
    const maxRows = limits.maxSequences + mostMoreRows
    this.#programs = new Programs(device, model, this.#kv, { maxSequences: limits.maxSequences, maxPages, maxRows })
    this.#limits = limits
    this.#evaluations = new Evaluations({
      device,
      vocab: config.vocab,
      pages: this.#pages,
      scheduler: this.#scheduler,
      programs: this.#programs,
      maxQueue: limits.maxQueue,
      released: () => this.#released(),
      check: () => this.#check(),
    })
  }

  /**
   * Records the programs that every answer needs, so that no step has to: for any number of tokens. The largest first: its
   * memory does for all. @throws DeviceError ERR_OUT_OF_MEMORY
   */
  warmUp(): void {
    for (let tokens = this.#limits.maxBatchTokens; tokens > 1; tokens = Math.ceil(tokens / 2))
      this.#programs.generation({ tokens })
    this.#programs.generation({ tokens: 1 })
  }

  get stats(): EngineStats {
    const { running, waiting, preemptions, hits } = this.#scheduler
    const { count, available, idle, size } = this.#pages
    return {
      running,
      waiting,
      pages: { total: count, used: count - available, cached: idle, free: available - idle, size },
      cachedTokens: hits,
      preemptions,
      ...this.#counts,
    }
  }

  /**
   * Takes a job in; it runs in the next step that has room.
   * @throws InputError ERR_OPTION_KV_CACHE: the cache can never hold it; BusyError ERR_BUSY: too many wait; DeviceError,
   *   ClosedError: the engine has ended
   */
  submit(job: Job): void {
    this.refuse(job.sequence)
    this.#jobs.set(job.sequence, job)
    this.#counts.promptTokens += job.sequence.promptLength
    this.#scheduler.add(job.sequence)
    this.#start()
  }

  /** @throws what submit would throw now, if so many more came before */
  refuse({ promptLength, maxTokens }: Sequence, before = 0): void {
    this.#check()
    this.#refuseTooLarge(this.#scheduler.pagesFor(promptLength, maxTokens), `${promptLength} + ${maxTokens} tokens`)
    const { maxSequences, maxQueue } = this.#limits
    const places = Math.max(0, maxSequences - this.#scheduler.running) // whom they are free for does not wait
    if (this.#scheduler.waiting + before >= maxQueue + places) throw busy(maxQueue)
  }

  /** Ends a job now, whatever state it is in; its pages are free for the next step. */
  abort(sequence: Sequence): void {
    this.#finish(sequence)?.end('abort')
  }

  /** Ends a job with an error of its own. */
  fail(sequence: Sequence, error: Error): void {
    this.#finish(sequence)?.fail(error)
  }

  /**
   * Logits [tokens, vocab] of a sequence, each row those of the token after it, row by row as in a generation.
   * @throws as submit
   */
  async evaluate(tokens: readonly number[], signal?: AbortSignal): Promise<Float32Array> {
    this.#refuseTooLarge(this.#pages.needed(tokens.length), `${tokens.length} tokens`)
    return this.#evaluations.run(tokens, signal)
  }

  /** Ends every job with `error` and refuses all later ones. */
  close(error: Error = new ClosedError('ERR_CLOSED', 'the model was closed')): void {
    this.#failure ??= error
    for (const sequence of [...this.#jobs.keys()]) this.#finish(sequence)?.fail(this.#failure)
    this.#evaluations.fail(this.#failure)
    this.#released()
  }

  #refuseTooLarge(pages: number, what: string): void {
    if (pages <= this.#pages.count) return
    const size = this.#pages.count * this.#pages.size
    const way = 'shorten the prompt, lower maxTokens or load the model with a larger kvCacheTokens'
    throw new InputError('ERR_OPTION_KV_CACHE', `${what} never fit into a key/value cache of ${size} tokens; ${way}`)
  }

  #check(): void {
    if (this.#failure) throw this.#failure
  }

  #released(): void {
    this.#evaluations.released()
    this.#wake?.()
  }

  /** A sequence may be ready() now. */
  wake(): void {
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
      let flight: Flight | undefined
      while (this.#jobs.size > 0 || flight) {
        const began = performance.now()
        const batch = this.#scheduler.schedule(this.#evaluations.arrival)
        this.#evaluations.released() // those that an evaluation has waited for may have started
        const next = batch.work.length > 0 ? this.#enqueue(batch) : undefined
        this.#counts.hostMilliseconds += performance.now() - began
        if (flight) await this.#settle(flight)
        else if (batch.work.length === 0) {
          await this.#woken()
          continue
        }
        const ahead = this.#limits.pipeline && !next?.work.some(needsToken)
        if (next && !ahead) {
          await this.#settle(next)
          await this.#masked(next.work)
        }
        this.#counts.stepMilliseconds += performance.now() - began
        flight = ahead ? next : undefined
      }
    } catch (error) {
      this.close(error as Error)
    } finally {
      this.#looping = false
    }
  }

  /** Until pages, jobs or masks come. */
  #woken(most?: number): Promise<void> {
    return new Promise<void>(resolve => {
      const timer = most === undefined ? undefined : setTimeout(resolve, most)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }

  /** Waits a little for masks that the tokens of this work ask for: a step without them costs their sequences all of a step. */
  async #masked(work: readonly Work[]): Promise<void> {
    const began = performance.now()
    const lacks = ({ sequence: { ended, options } }: Work) => !ended && options.ready?.() === false
    while (performance.now() - began < patience && work.some(lacks)) await this.#woken(patience)
  }

  #enqueue({ work, copies }: Batch): Flight | undefined {
    const size = sizeOf(work)
    let buffers: StepBuffers | undefined
    try {
      if (copies.from.length > 0) this.#device.copyPages(this.#kv, Int32Array.from(copies.from), Int32Array.from(copies.to))
      const recorded = this.#programs.generation(size)
      buffers = recorded.buffers
      buffers.writeBatch(work, this.#pages.size)
      recorded.program.run()
      const results = readResults(this.#device, recorded.program.outputs, size)
      results.catch(() => {}) // whoever waits for the step hears of it
      return { work, results }
    } catch (error) {
      // The step was not enqueued, so nothing of it is in the cache: its sequences cannot go on, others can.
      buffers?.forget()
      for (const { sequence } of work) this.#finish(sequence)?.fail(error as Error)
      return undefined
    }
  }

  async #settle(flight: Flight): Promise<void> {
    const results = await flight.results
    const began = performance.now()
    this.#counts.steps++
    let row = 0
    for (const work of flight.work) {
      if (this.#jobs.has(work.sequence)) this.#settleWork(work, row, results)
      row += work.rows
    }
    this.#counts.hostMilliseconds += performance.now() - began
  }

  /** row: the first one of this work. */
  #settleWork(work: Work, row: number, results: Results): void {
    const { sequence, rows, guesses } = work
    const first = row + rows - 1 - guesses.length
    const failed = results.status.subarray(row, first + 1).findIndex(status => status !== 0)
    if (failed >= 0) {
      this.#failNotFinite(sequence, work.to - rows + failed + 1, results.logprobs[row + failed]!)
      return
    }
    const tokens = this.#scheduler.settle(work, results.ids.subarray(row, row + rows))
    const job = this.#jobs.get(sequence)!
    try {
      for (let r = 0; sequence.options.scoresPrompt && r < rows; r++) {
        const position = work.to - rows + r + 1
        if (position < sequence.promptLength)
          job.scored?.(position, results.logprobs[row + r]!, topOf(sequence, results, row + r))
      }
      sequence.tokens.length -= tokens.length // it has those that its job was told of
      for (const [i, id] of tokens.entries()) {
        if (!this.#jobs.has(sequence)) return // its user has aborted it meanwhile
        if (results.status[first + i] !== 0) {
          this.#failNotFinite(sequence, sequence.tokens.length, results.logprobs[first + i]!)
          return
        }
        this.#counts.generatedTokens++
        sequence.tokens.push(id)
        const reason =
          job.token(id, results.logprobs[first + i]!, topOf(sequence, results, first + i)) ??
          (sequence.generated >= sequence.maxTokens ? 'length' : undefined)
        if (reason) this.#finish(sequence)?.end(reason)
      }
    } catch (error) {
      this.#finish(sequence)?.fail(error as Error)
    }
  }

  /** logprob: of the raw logits; a number where it is the rules that left nothing. */
  #failNotFinite(sequence: Sequence, tokens: number, logprob: number): void {
    const where = `after ${tokens} tokens`
    const error =
      sequence.sampling.rules && !Number.isNaN(logprob)
        ? new NumericError('ERR_NO_TOKEN', `${where} no token is allowed: format, logitBias or minTokens rule out all of them`)
        : new NumericError(
            'ERR_NOT_FINITE',
            `the logits ${where} are not finite: the weights are damaged, or do not belong to config.json`,
          )
    this.#finish(sequence)?.fail(error)
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

/** Its next step cannot be prepared before this one is read: so all wait, and go on together. */
const needsToken = ({ samples, sequence: { options } }: Work) =>
  samples && (options.lockstep === true || options.guess !== undefined)
