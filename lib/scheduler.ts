/** Which sequences run in the next step. Pure: it knows tokens and pages, and touches no tensor. */
import type { Pages } from './pages.ts'
import type { Sequence } from './sequence.ts'

export interface SchedulerLimits {
  /** Sequences in one step. */
  readonly maxSequences: number
  /** Tokens in one step; at least as many as the longest prompt has. */
  readonly maxBatchTokens: number
}

/** What one step computes: the pending tokens of each sequence, in this order. */
export type Batch = readonly Sequence[]

/**
 * First come, first served. A sequence starts when all the pages that it can ever need are free, so a running one never
 * has to wait; it gives them back when it is removed.
 */
export class Scheduler {
  readonly #pages: Pages
  readonly #limits: SchedulerLimits
  readonly #waiting = new Set<Sequence>()
  readonly #running = new Set<Sequence>()

  constructor(pages: Pages, limits: SchedulerLimits) {
    this.#pages = pages
    this.#limits = limits
  }

  get waiting(): number {
    return this.#waiting.size
  }

  get running(): number {
    return this.#running.size
  }

  /** Pages that a sequence takes at most. The last token generated is never fed back, so it needs no place. */
  pagesFor(promptLength: number, maxTokens: number): number {
    return this.#pages.needed(promptLength + maxTokens - 1)
  }

  add(sequence: Sequence): void {
    this.#waiting.add(sequence)
  }

  /** Ends a sequence in any state; its pages are free for the next step. */
  remove(sequence: Sequence): void {
    this.#waiting.delete(sequence)
    if (!this.#running.delete(sequence)) return
    this.#pages.release(sequence.pages)
    sequence.pages = []
  }

  /**
   * The next step: everyone who runs, then (with admit) those who wait, in order, as far as tokens, sequences and pages
   * allow.
   */
  schedule(admit = true): Batch {
    let tokens = 0
    for (const sequence of this.#running) tokens += sequence.pending
    for (const sequence of admit ? this.#waiting : []) {
      if (this.#running.size >= this.#limits.maxSequences) break
      if (tokens + sequence.pending > this.#limits.maxBatchTokens) break
      const pages = this.#pages.take(this.pagesFor(sequence.promptLength, sequence.maxTokens))
      if (!pages) break
      sequence.pages = pages
      tokens += sequence.pending
      this.#waiting.delete(sequence)
      this.#running.add(sequence)
    }
    return [...this.#running]
  }
}
