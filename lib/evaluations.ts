/** Logits of whole texts, beside what is generated: who wants them waits for pages of the cache, and computes alone. */
import type { Device } from '../binding.d.ts'
import { BusyError, InputError } from './errors.ts'
import type { Pages } from './pages.ts'
import type { Programs } from './programs.ts'
import type { Scheduler } from './scheduler.ts'

/** An evaluation that waits for pages. */
interface Waiting {
  readonly pages: number
  /** Sequences that arrived before it go first. */
  readonly arrival: number
  take(pages: number[]): void
  fail(error: unknown): void
}

/** What evaluations use of an engine. */
export interface Host {
  readonly device: Device
  readonly vocab: number
  readonly pages: Pages
  readonly scheduler: Scheduler
  readonly programs: Programs
  /** Evaluations that wait; more are refused. */
  readonly maxQueue: number
  /** Pages, or the turn, are free for others. */
  released(): void
  /** @throws why the engine has ended, if it has */
  check(): void
}

/** Rows of logits that are computed at once: 128 x 128256 x 4 bytes are 66 MB. */
const rows = 128
/** 2^32 bytes, which every version of Node allows in one array. */
const mostLogits = 2 ** 30

export class Evaluations {
  readonly #host: Host
  readonly #waiting = new Set<Waiting>()

  constructor(host: Host) {
    this.#host = host
  }

  /** When the first one that waits has arrived. */
  get arrival(): number | undefined {
    const [first] = this.#waiting
    return first?.arrival
  }

  /**
   * Logits [tokens, vocab] of a text that fits into the cache, each row those of the token after it, row by row as in a
   * generation.
   * @throws InputError ERR_PROMPT_TOO_LONG, BusyError, DeviceError, what check() throws, the reason of the signal
   */
  async run(tokens: readonly number[], signal?: AbortSignal): Promise<Float32Array> {
    const { device, vocab, pages, programs } = this.#host
    if (tokens.length * vocab > mostLogits) {
      const found = `the logits of ${tokens.length} tokens are ${tokens.length} x ${vocab} numbers`
      const most = Math.floor(mostLogits / vocab)
      throw new InputError('ERR_PROMPT_TOO_LONG', `${found}, more than an array holds; evaluate at most ${most} tokens at a time`)
    }
    const own = await this.#take(pages.needed(tokens.length), signal)
    try {
      const all = new Float32Array(tokens.length * vocab)
      for (let from = 0; from < tokens.length; from += rows) {
        this.#host.check()
        signal?.throwIfAborted()
        const to = Math.min(tokens.length, from + rows)
        const { buffers, program } = programs.evaluation(to - from)
        buffers.writeEvaluation(tokens, from, to, own, pages.size)
        program.run()
        await device.read(program.outputs, all.subarray(from * vocab, to * vocab))
      }
      return all
    } finally {
      pages.release(own)
      this.#host.released()
    }
  }

  /** Pages, or the turn, may be free: who waits may go on. */
  released(): void {
    const { pages, scheduler } = this.#host
    for (const waiting of this.#waiting) {
      const taken = scheduler.waitsSince(waiting.arrival) ? undefined : pages.take(waiting.pages)
      if (!taken) return
      this.#waiting.delete(waiting)
      waiting.take(taken)
    }
  }

  /** Ends all that wait. */
  fail(error: Error): void {
    for (const waiting of this.#waiting) waiting.fail(error)
    this.#waiting.clear()
  }

  /** Waits, first come, first served, also among sequences that have not started. */
  async #take(pages: number, signal: AbortSignal | undefined): Promise<number[]> {
    const { scheduler, maxQueue } = this.#host
    this.#host.check()
    signal?.throwIfAborted()
    if (this.#waiting.size >= maxQueue) throw busy(maxQueue)
    let stop!: () => void
    try {
      return await new Promise<number[]>((take, fail) => {
        const waiting = { pages, arrival: scheduler.arrived, take, fail }
        stop = () => {
          this.#waiting.delete(waiting)
          fail(signal!.reason)
          this.#host.released()
        }
        signal?.addEventListener('abort', stop)
        this.#waiting.add(waiting)
        this.#host.released()
      })
    } finally {
      signal?.removeEventListener('abort', stop)
    }
  }
}

export const busy = (most: number) =>
  new BusyError('ERR_BUSY', `${most} requests wait already; try again later, or load with a larger maxQueue`)
