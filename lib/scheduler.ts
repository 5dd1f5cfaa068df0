/** Which tokens of which sequences the next step computes, and in which pages. Pure: it touches no tensor. */
import { before, Line } from './line.ts'
import { noPage, type Pages } from './pages.ts'
import type { Sequence } from './sequence.ts'

export interface SchedulerLimits {
  /** Sequences in one step. */
  readonly maxSequences: number
  /** Tokens in one step; at least maxSequences, so that a prompt goes on whatever else runs. */
  readonly maxBatchTokens: number
  /** Whether sequences may begin with what is in the cache. */
  readonly prefixCache: boolean
}

/** Rows of a step through the head, besides one of each sequence: 128 rows of logits x 128256 x 4 bytes are 66 MB. */
export const mostMoreRows = 128
/** Guesses of one sequence in a step. */
export const mostGuesses = 16
/** A sequence of priority p goes before those of priority 0 that arrived at most p times so many sequences earlier. */
const overtakes = 64

/** What a step computes of one sequence: the tokens at the positions [from, to). */
export interface Work {
  readonly sequence: Sequence
  readonly epoch: number
  readonly from: number
  readonly to: number
  /** Guessed tokens, the last ones of these. */
  readonly guesses: readonly number[]
  /** How many rows, the last ones of these, go through the head. */
  readonly rows: number
  /** Whether a new token comes out of the last rows. */
  readonly samples: boolean
}

export interface Batch {
  readonly work: readonly Work[]
  /** Pages to copy before the step, from[i] to to[i], in this order: a copy may read what one before it has written. */
  readonly copies: { readonly from: readonly number[]; readonly to: readonly number[] }
}

/**
 * Sequences have one order for everything: who arrived first, corrected by priority. In this order they get their share
 * of a step, one token each where they generate and of the rest as much of their prompts as there is room for; guesses
 * get what is left. Who finds no page takes those of the last in order, which starts again later; so the first always
 * advances. As the correction is bounded, everybody becomes the first at some time.
 */
export class Scheduler {
  readonly #pages: Pages
  readonly #limits: SchedulerLimits
  readonly #waiting = new Line()
  readonly #running = new Line()
  #arrived = 0
  #preemptions = 0
  #hits = 0

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

  /** Times that a sequence has lost its pages. */
  get preemptions(): number {
    return this.#preemptions
  }

  /** Tokens of prompts that were in the cache when a sequence started for the first time. */
  get hits(): number {
    return this.#hits
  }

  /** Pages that a sequence takes at most. The last token generated is never fed back, so it needs no place. */
  pagesFor(promptLength: number, maxTokens: number): number {
    return this.#pages.needed(promptLength + maxTokens - 1)
  }

  /** A sequence of which pagesFor() is at most the pages that there are. */
  add(sequence: Sequence): void {
    sequence.arrival = this.#arrived++
    sequence.order = sequence.arrival - (sequence.options.priority ?? 0) * overtakes
    this.#waiting.add(sequence)
  }

  /** Ends a sequence in any state; its pages are free for the next step. */
  remove(sequence: Sequence): void {
    sequence.ended = true
    if (this.#running.remove(sequence)) this.#drop(sequence)
    else this.#waiting.remove(sequence)
  }

  /** How many have arrived: the arrival of the next one. */
  get arrived(): number {
    return this.#arrived
  }

  /** Whether somebody waits who arrived before that. */
  waitsSince(arrival: number): boolean {
    for (let w = 0; w < this.#waiting.size; w++) if (this.#waiting.at(w)!.arrival < arrival) return true
    return false
  }

  /** The next step, as if it were enqueued. Of those who wait only who arrived before `until` may start. */
  schedule(until = Number.POSITIVE_INFINITY): Batch {
    const batch = new Planned(this.#limits.maxBatchTokens)
    this.#share(batch, until)
    for (let at = 0; at < batch.work.length; at++) this.#guess(at, batch)
    return batch
  }

  /** Everybody's share of what is known. */
  #share(batch: Planned, until: number): void {
    let admit = true
    for (let r = 0; r < this.#running.size; r++) if (generates(this.#running.at(r)!)) batch.reserved++
    const preempted = this.#preemptions
    for (let r = 0, w = 0; ; ) {
      const running = this.#running.at(r)
      const open = admit && this.#preemptions === preempted
      while (open && w < this.#waiting.size && !mayStart(this.#waiting.at(w)!, until)) w++
      const waiting = open ? this.#waiting.at(w) : undefined
      if (running && !(waiting && before(waiting, running))) {
        r++
        if (generates(running)) batch.reserved--
        this.#plan(running, batch)
      } else if (!waiting) {
        return
      } else if (this.#admit(waiting, batch)) {
        r++ // it runs now, at this place
        this.#plan(waiting, batch)
      } else {
        admit = false // nobody overtakes the first who waits
      }
    }
  }

  /**
   * The step with this work has run and its samples are read: ids of the work's rows. Gives the tokens that are new: one,
   * or with guesses those that came true and one; none in the middle of a prompt.
   */
  settle(work: Work, ids: ArrayLike<number>): readonly number[] {
    const { sequence, guesses } = work
    const tokens: number[] = []
    if (work.samples) {
      const first = work.rows - 1 - guesses.length
      do tokens.push(ids[first + tokens.length]!)
      while (tokens.at(-1) === guesses[tokens.length - 1])
      sequence.ahead--
      sequence.tokens.push(...tokens)
    }
    if (work.epoch !== sequence.epoch) return tokens
    if (tokens.length > 1) sequence.computed += tokens.length - 1
    sequence.settled = work.samples ? sequence.tokens.length - 1 : work.to
    if (this.#limits.prefixCache) this.#publish(sequence)
    return tokens
  }

  /** Others may use the pages that are full. */
  #publish(sequence: Sequence): void {
    const { size } = this.#pages
    const { pages, tokens, settled } = sequence
    for (let i = sequence.published; (i + 1) * size <= settled; i++) {
      const page = this.#pages.publish(pages[i]!, i === 0 ? noPage : pages[i - 1]!, tokens, i * size)
      if (page !== pages[i]) sequence.version++
      pages[i] = page
      sequence.published = i + 1
    }
  }

  /** Gives a waiting sequence what it needs to run: a place, and pages for all its tokens. */
  #admit(sequence: Sequence, batch: Planned): boolean {
    const last = this.#running.last!
    const place = this.#running.size < this.#limits.maxSequences
    const freed = !place && generates(last) ? 1 : 0 // by the one whose place it takes
    if (batch.room + freed < 1 || (!place && before(last, sequence))) return false
    const beginning = this.#beginning(sequence)
    let losers = this.#losers(sequence, beginning)
    if (losers === undefined) return false
    this.#begin(sequence, beginning)
    for (; losers > 0; losers--) this.#preempt(sequence, batch)
    if (sequence.epoch === 0) this.#hits += sequence.computed
    this.#waiting.remove(sequence)
    this.#running.add(sequence)
    this.#grow(sequence, sequence.length)
    return true
  }

  /** Where its first tokens are, as far as somebody has them; it needs a row of the last one, so that is computed in any case. */
  #beginning({ tokens, promptLength, length, found, options: { leader, scoresPrompt } }: Sequence): Beginning {
    if (scoresPrompt) return { pages: [], computed: 0, published: 0 }
    const led = leader && leader.settled >= promptLength ? promptLength - 1 : 0
    const pages = this.#limits.prefixCache && led < length - 1 ? this.#pages.find(tokens, found) : []
    const computed = Math.min(pages.length * this.#pages.size, length - 1)
    if (led <= computed) return { pages, computed, published: pages.length }
    const published = Math.min(leader!.published, Math.floor(led / this.#pages.size))
    return { pages: leader!.pages.slice(0, this.#pages.needed(promptLength)), computed: led, published }
  }

  /** How many of the last in order must lose their pages for this one to start; undefined: not all after it have enough. */
  #losers(sequence: Sequence, { pages, computed }: Beginning): number | undefined {
    const written = pages[Math.floor(computed / this.#pages.size)]
    const more = this.#pages.needed(sequence.length) - pages.length
    let { available } = this.#pages
    for (const page of pages) if (this.#pages.users(page) === 0) available--
    let most = available // if those after it shared no page
    for (let r = this.#running.size - 1; r >= 0 && before(sequence, this.#running.at(r)!); r--) {
      most += 1 + this.#running.at(r)!.pages.length
    }
    if (more + this.#running.size > most) return undefined
    let lost: Int32Array | undefined // by page: users
    for (let others = this.#running.size; ; others--) {
      const copies = written !== undefined && this.#pages.users(written) > (lost?.[written] ?? 0) ? 1 : 0
      // And a page for each that runs: else the next one to fill its own would take those of this one again.
      const fits = more + copies + others <= available
      if (fits && others < this.#limits.maxSequences) return this.#running.size - others
      const last = this.#running.at(others - 1)
      if (!last || before(last, sequence)) return undefined
      lost ??= new Int32Array(this.#pages.count)
      for (let i = 0; i < last.pages.length; i++) {
        const page = last.pages[i]!
        if (++lost[page]! === this.#pages.users(page) && page !== pages[i]) available++
      }
    }
  }

  #begin(sequence: Sequence, { pages, computed, published }: Beginning): void {
    this.#pages.retain(pages)
    sequence.pages = [...pages]
    sequence.computed = computed
    sequence.published = published
    sequence.settled = computed
    sequence.version++
  }

  /** A share of the step for a sequence that runs. */
  #plan(sequence: Sequence, batch: Planned): void {
    const { ready, scoresPrompt } = sequence.options
    if (!goesOn(sequence)) return
    const scored = scoresPrompt && sequence.computed < sequence.promptLength
    const pending = ready?.() === false ? sequence.pending - 1 : sequence.pending // all but the token that is sampled from
    const most = Math.min(pending, batch.room, scored ? 1 + batch.moreRows : pending)
    if (most < 1) return
    const from = sequence.computed
    const to = from + most
    const samples = to === sequence.length
    if (!this.#makeWritable(sequence, to, batch)) return
    batch.add({ sequence, epoch: sequence.epoch, from, to, guesses: [], rows: scored ? most : samples ? 1 : 0, samples })
    sequence.computed = to
    if (samples) sequence.ahead++
  }

  /** Pages of its own for [computed, to). */
  #makeWritable(sequence: Sequence, to: number, batch: Planned): boolean {
    const copied = () => (this.#mustCopy(sequence) ? 1 : 0)
    const more = () => Math.max(0, this.#pages.needed(to) - sequence.pages.length) + copied()
    while (this.#pages.available < more()) if (!this.#preempt(sequence, batch)) return false
    const at = Math.floor(sequence.computed / this.#pages.size)
    if (copied()) {
      const [own] = this.#pages.take(1)!
      const shared = sequence.pages[at]!
      batch.copy(shared, own!)
      sequence.pages[at] = own!
      sequence.version++
      this.#pages.release([shared])
      sequence.published = Math.min(sequence.published, at)
    } else if (at >= sequence.published && at < sequence.pages.length) {
      this.#pages.forget(sequence.pages[at]!) // a leader that is gone had filled it with tokens of its own
    }
    this.#grow(sequence, to)
    return true
  }

  /** Whether the next token goes into a page that others use, too. */
  #mustCopy({ computed, pages }: Sequence): boolean {
    const page = pages[Math.floor(computed / this.#pages.size)]
    return page !== undefined && this.#pages.isShared(page)
  }

  /** Guesses after a token that is generated: as many as there is room for that nobody else wants, and as many pages. */
  #guess(at: number, batch: Planned): void {
    const { sequence, from, to, samples } = batch.work[at]!
    const { guess } = sequence.options
    if (!guess || !samples || to - from > 1) return
    const { size, available } = this.#pages
    const places = (sequence.pages.length + available - this.#running.size) * size - to
    const most = Math.min(batch.room, batch.moreRows, places, sequence.maxTokens - sequence.generated - 1)
    if (most < 1) return
    const guesses = guess(sequence.tokens).slice(0, most)
    this.#grow(sequence, to + guesses.length)
    batch.guess(at, guesses)
  }

  /** Pages for so many tokens, which there are. */
  #grow(sequence: Sequence, tokens: number): void {
    const more = this.#pages.needed(tokens) - sequence.pages.length
    if (more <= 0) return
    sequence.pages.push(...this.#pages.take(more)!)
    sequence.version++
  }

  /** Takes the place and the pages of the last one in order; false if it is not after this one. */
  #preempt(sequence: Sequence, batch: Planned): boolean {
    const { last } = this.#running
    if (!last || last === sequence || before(last, sequence)) return false
    this.#preemptions++
    this.#running.remove(last)
    if (generates(last)) batch.reserved--
    this.#drop(last)
    this.#waiting.add(last)
    return true
  }

  #drop(sequence: Sequence): void {
    this.#pages.release(sequence.pages)
    sequence.pages = []
    sequence.version++
    sequence.published = 0
    sequence.computed = 0
    sequence.settled = 0
    sequence.epoch++
  }
}

/** The pages in which a sequence begins, how many of its tokens are there, and how many of the pages others may find. */
interface Beginning {
  readonly pages: readonly number[]
  readonly computed: number
  readonly published: number
}

/** Whether it needs one token of a step, which is kept for it. */
const generates = (sequence: Sequence) => sequence.pending === 1 && goesOn(sequence)
/** Not if its last token is on its way, nor if it needs the one that is. */
const goesOn = ({ generated, ahead, maxTokens, options: { lockstep, guess } }: Sequence) =>
  generated + ahead < maxTokens && !(ahead > 0 && (lockstep || guess))
/** Not if it arrived too late, nor while its prompt is being computed, or will be, by another one. */
function mayStart(sequence: Sequence, until: number): boolean {
  if (sequence.arrival >= until) return false
  const { leader } = sequence.options
  return leader === undefined || leader.ended || leader.generated > 0
}

/** A step in the making. */
class Planned implements Batch {
  readonly work: Work[] = []
  readonly copies: { from: number[]; to: number[] } = { from: [], to: [] }
  /** Tokens kept for sequences that generate and have not had their turn. */
  reserved = 0
  /** Rows through the head that there is room for, besides one of each sequence. */
  moreRows = mostMoreRows
  #left: number

  constructor(tokens: number) {
    this.#left = tokens
  }

  /** Tokens that are left for whoever has his turn. */
  get room(): number {
    return this.#left - this.reserved
  }

  add(work: Work): void {
    this.work.push(work)
    this.#left -= work.to - work.from
    this.moreRows -= Math.max(0, work.rows - 1)
  }

  guess(at: number, guesses: readonly number[]): void {
    const work = this.work[at]!
    this.work[at] = { ...work, to: work.to + guesses.length, guesses, rows: work.rows + guesses.length }
    this.#left -= guesses.length
    this.moreRows -= guesses.length
  }

  copy(from: number, to: number): void {
    this.copies.from.push(from)
    this.copies.to.push(to)
  }
}
