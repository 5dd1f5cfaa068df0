/**
 * An engine without a device. Its cache has a number for each slot: that of the whole history up to there. A step writes
 * what its work says, the next token follows from what is read through the page table, and all that a sequence may see is
 * compared with its own history. After each step and each end it is held what Scheduler promises.
 */
import { Pages } from '../../lib/pages.ts'
import { type Batch, mostMoreRows, Scheduler, type SchedulerLimits, type Work } from '../../lib/scheduler.ts'
import { Sequence, type SequenceOptions } from '../../lib/sequence.ts'

// Of jest's global scope every look-up takes a microsecond.
const { floor, imul, min } = Math

/** expect is slow, and this is asked a hundred million times. */
export function hold(condition: boolean, what: string): void {
  if (!condition) throw new Error(`does not hold: ${what}`)
}

/** Numbers below n, by xorshift. */
export type Random = (n: number) => number
export function randoms(seed: number): Random {
  let state = imul(seed + 1, 0x9e3779b1)
  return n => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % n
  }
}

/** So few that histories often begin alike. */
export const vocabulary = 3
export const tokens = (random: Random, count: number) => Array.from({ length: count }, () => random(vocabulary))
const nothing = 0
const start = 1
/** The history that goes on with a token. */
function after(history: number, token: number): number {
  let mixed = imul(history ^ imul(token + 1, 0x9e3779b1), 0x85ebca6b)
  mixed = imul(mixed ^ (mixed >>> 15), 0xc2b2ae35)
  return mixed ^ (mixed >>> 13) || start
}
/** The token that comes next; salt: how it is sampled. */
const next = (history: number, salt: number) => (after(history, salt) >>> 7) % vocabulary

/** What really comes after these tokens. */
export function continuation(tokens: readonly number[], salt: number, count: number): number[] {
  let history = start
  for (const token of tokens) history = after(history, token)
  const more: number[] = []
  while (more.length < count) {
    more.push(next(history, salt))
    history = after(history, more.at(-1)!)
  }
  return more
}

export interface Asked extends SequenceOptions {
  readonly prompt: readonly number[]
  readonly maxTokens: number
  readonly salt?: number
  /** Tokens after which it stops by itself. */
  readonly stopsAfter?: number
}

/** A sequence in the engine. */
export class Job {
  readonly asked: Asked
  readonly sequence: Sequence
  readonly salt: number
  readonly arrival: number
  readonly rank: number
  /** Tokens that exist on the device, and of those that were computed the history that each one ends. */
  readonly tokens: number[]
  readonly histories: number[] = []
  /** Rows of its prompt that were looked at, since it started last. */
  scored = 0
  /** Its pages as they were copied to the device, which happens when their version changes. */
  table: readonly number[] = []
  version = -1
  /** The step that sampled the last token. */
  sampledIn = -1
  ended = false
  /** Before a step: whether it has pages, has one token to compute, may go on. */
  ran = false
  generates = false
  may = false
  /** Whether its next token may be sampled. */
  ready = true

  constructor(asked: Asked, arrival: number) {
    const { prompt, maxTokens, salt, priority } = asked
    this.asked = asked
    this.sequence = new Sequence(prompt, maxTokens, {} as Sequence['sampling'], { ...asked, ready: () => this.ready })
    this.salt = salt ?? 0
    this.arrival = arrival
    this.rank = arrival - 64 * (priority ?? 0)
    this.tokens = [...prompt]
  }

  get runs(): boolean {
    return this.sequence.pages.length > 0
  }
  /** It needs the token that is on its way. */
  get waitsForToken(): boolean {
    const { ahead, options } = this.sequence
    return ahead > 0 && (options.lockstep === true || options.guess !== undefined)
  }
  /** Its last token is on its way. */
  get finishes(): boolean {
    return this.tokens.length - this.asked.prompt.length >= this.asked.maxTokens
  }
  get waitsForLeader(): boolean {
    const { leader } = this.asked
    return leader !== undefined && !leader.ended && leader.generated === 0
  }
}

/** Remembers what was taken: its content is unknown from then on. */
class WatchedPages extends Pages {
  readonly taken: number[] = []

  override take(pages: number): number[] | undefined {
    const taken = super.take(pages)
    this.taken.push(...(taken ?? []))
    return taken
  }
}

interface Flight {
  readonly work: Work
  readonly job: Job
  readonly ids: readonly number[]
  readonly tokens: readonly number[]
}

export interface ShadowLimits extends SchedulerLimits {
  readonly count: number
  readonly size: number
  /** Whether a step is prepared before the one before it is read. */
  readonly pipelined?: boolean
}

export class ShadowEngine {
  readonly pages: WatchedPages
  readonly scheduler: Scheduler
  readonly limits: ShadowLimits
  /** In order. */
  readonly jobs: Job[] = []
  readonly ended: Job[] = []
  /** Pages that somebody has who is no sequence. */
  outside: number[] = []
  steps = 0
  copies = 0
  guessed = 0
  readonly #cache: Int32Array
  #arrived = 0
  #flight: Flight[] = []

  constructor(limits: ShadowLimits) {
    const { count, size } = limits
    this.limits = limits
    this.pages = new WatchedPages(count, size)
    this.scheduler = new Scheduler(this.pages, limits)
    this.#cache = new Int32Array(count * size).fill(nothing)
  }

  get used(): number {
    return this.pages.count - this.pages.available
  }

  add(asked: Asked): Job {
    const job = new Job(asked, this.#arrived++)
    const after = this.jobs.findIndex(other => other.rank > job.rank)
    this.jobs.splice(after < 0 ? this.jobs.length : after, 0, job)
    this.scheduler.add(job.sequence)
    return job
  }

  remove(job: Job): void {
    job.ended = true
    this.jobs.splice(this.jobs.indexOf(job), 1)
    this.ended.push(job)
    this.scheduler.remove(job.sequence)
    hold(job.sequence.pages.length === 0, 'who ended has no pages')
    this.#checkPages()
  }

  /** fails: the step cannot be enqueued. */
  step({ admit = true, fails = false } = {}): Batch {
    for (const job of this.jobs) {
      job.ran = job.runs
      job.generates = job.sequence.pending === 1
      job.may = !job.waitsForToken && !job.finishes
    }
    const { preemptions } = this.scheduler
    const batch = this.scheduler.schedule(admit ? undefined : 0)
    this.steps++
    this.#checkPages()
    this.#checkBatch(batch)
    this.#checkOrder(batch, this.scheduler.preemptions - preemptions, admit)
    let flight: Flight[] = []
    if (fails) for (const job of this.#jobsOf(batch)) this.remove(job)
    else flight = this.#run(batch)
    if (this.limits.pipelined === false) this.#settle(flight)
    else this.#settle(this.#flight)
    this.#flight = this.limits.pipelined === false ? [] : flight
    return batch
  }

  #jobsOf({ work }: Batch): Job[] {
    return work.map(({ sequence }) => this.jobs.find(job => job.sequence === sequence)!)
  }

  #slot({ pages }: Sequence, position: number): number {
    const { size } = this.pages
    const page = pages[floor(position / size)]
    hold(page !== undefined, 'every position has a place')
    return page! * size + (position % size)
  }

  /** Copies, then all writes, then all reads. */
  #run(batch: Batch): Flight[] {
    const { size } = this.pages
    const { from, to } = batch.copies
    this.copies += from.length
    for (const [i, page] of from.entries()) this.#cache.copyWithin(to[i]! * size, page * size, (page + 1) * size)
    for (const page of this.pages.taken) if (!to.includes(page)) this.#cache.fill(nothing, page * size, (page + 1) * size)
    this.pages.taken.length = 0
    const jobs = this.#jobsOf(batch)
    for (const job of jobs) this.#tabulate(job)
    const written = batch.work.map((work, i) => this.#write(work, jobs[i]!))
    return batch.work.map((work, i) => this.#read(work, jobs[i]!, written[i]!))
  }

  #tabulate(job: Job): void {
    const { version, pages } = job.sequence
    if (job.version !== version) job.table = [...pages]
    job.version = version
    hold(job.table.length === pages.length && job.table.every((page, i) => page === pages[i]), 'a change of pages counts')
  }

  /** Gives the histories that the tokens of this work end. */
  #write({ sequence, from, to, guesses }: Work, job: Job): number[] {
    const histories: number[] = []
    const known = to - guesses.length
    let history = from === 0 ? start : this.#cache[this.#slot(sequence, from - 1)]!
    for (let position = from; position < to; position++) {
      const token = position < known ? job.tokens[position]! : guesses[position - known]!
      const read = position < sequence.tokens.length
      if (position < known) hold(read ? sequence.tokens[position] === token : job.sampledIn === this.steps - 1, 'token is there')
      history = after(history, token)
      histories.push(history)
      const slot = this.#slot(sequence, position)
      hold(this.#cache[slot] === history || !this.#othersSee(job, position), 'what others see is not changed')
      this.#cache[slot] = history
    }
    return histories
  }

  #othersSee({ sequence }: Job, position: number): boolean {
    const at = floor(position / this.pages.size)
    const page = sequence.pages[at]!
    if (!this.pages.isShared(page)) return false
    const sees = (other: Sequence) => other !== sequence && other.pages[at] === page && position < other.computed
    return this.jobs.some(job => sees(job.sequence))
  }

  #read(work: Work, job: Job, written: readonly number[]): Flight {
    const { sequence, from, to, guesses, rows, samples } = work
    const known = to - guesses.length
    for (let position = job.histories.length; position < known; position++) {
      job.histories.push(after(job.histories[position - 1] ?? start, job.tokens[position]!))
    }
    for (let position = 0; position < to; position++) {
      const own = position < known ? job.histories[position] : written[position - from]
      hold(this.#cache[this.#slot(sequence, position)] === own, 'a sequence sees its own history')
    }
    const ids = written.slice(written.length - rows).map(history => next(history, job.salt))
    const tokens: number[] = []
    if (samples) {
      const accepted = ids.slice(ids.length - 1 - guesses.length)
      for (const [i, id] of accepted.entries()) {
        tokens.push(id)
        if (guesses[i] !== id) break
      }
      job.tokens.push(...tokens)
      job.sampledIn = this.steps
      this.guessed += tokens.length - 1
    }
    hold(job.tokens.length - job.asked.prompt.length <= job.asked.maxTokens, 'maxTokens')
    return { work, job, ids, tokens }
  }

  #settle(flight: Flight[]): void {
    for (const { work, job, ids, tokens } of flight) {
      if (job.ended) continue
      const settled = this.scheduler.settle(work, ids)
      hold(`${settled}` === `${tokens}`, 'the tokens that were sampled come out')
      const { generated } = job.sequence
      if (generated >= min(job.asked.maxTokens, job.asked.stopsAfter ?? generated + 1)) this.remove(job)
    }
    this.#checkPages()
  }

  #checkPages(): void {
    const users = new Int32Array(this.pages.count)
    for (const { sequence } of this.jobs) for (const page of sequence.pages) users[page]!++
    for (const page of this.outside) users[page]!++
    let used = 0
    for (let page = 0; page < users.length; page++) {
      if (users[page]! > 0) used++
      hold(this.pages.isShared(page) === users[page]! > 1, 'a page is shared by those who have it')
    }
    hold(this.used === used, 'a page is in use while somebody has it')
    const running = this.jobs.filter(job => job.runs).length
    hold(this.scheduler.running === running && this.scheduler.waiting === this.jobs.length - running, 'all are counted')
    hold(running <= this.limits.maxSequences, 'maxSequences')
  }

  #checkBatch({ work, copies }: Batch): void {
    let [tokens, rows] = [0, 0]
    for (const { sequence, from, to, rows: some, samples, guesses } of work) {
      const job = this.jobs.find(other => other.sequence === sequence)
      hold(job !== undefined, 'who ended does not run')
      hold(job!.may && (job!.ready || !samples), 'nobody goes ahead who must not')
      hold(from < to - guesses.length && samples === (to - guesses.length === job!.tokens.length), 'it samples at its end')
      hold(guesses.length === 0 || to - from === 1 + guesses.length, 'guesses follow what is known')
      tokens += to - from
      rows += some
      if (!job!.asked.scoresPrompt) hold(some === (samples ? 1 + guesses.length : 0), 'rows')
      else this.#checkScored(job!, from, to, some)
    }
    hold(tokens <= this.limits.maxBatchTokens, 'maxBatchTokens')
    hold(rows <= this.limits.maxSequences + mostMoreRows, 'rows')
    hold(copies.from.every((page, i) => page !== copies.to[i]) && copies.from.length === copies.to.length, 'copies')
  }

  /** Every row of the prompt, in order, from its own computation. */
  #checkScored(job: Job, from: number, to: number, rows: number): void {
    if (!job.ran || from === 0) job.scored = 0
    const prompt = job.asked.prompt.length
    if (from >= prompt) return
    hold(from === job.scored && rows === to - from && rows <= 1 + mostMoreRows, 'every row of the prompt is looked at')
    job.scored = to
  }

  #checkOrder({ work }: Batch, preemptions: number, admit: boolean): void {
    const { maxBatchTokens, maxSequences } = this.limits
    let [at, blocked, preempted] = [0, false, 0]
    let first: Job | undefined
    const noPage = this.pages.available === 0
    const working = new Set(work.map(one => one.sequence))
    // Tokens of the step: those that it computes, and those kept for who then had no page or was not ready.
    let tokens = 0
    for (const { from, to } of work) tokens += to - from
    for (const job of this.jobs) if (job.ran && job.generates && job.may && !working.has(job.sequence)) tokens++
    const full = tokens >= maxBatchTokens
    for (const job of this.jobs) {
      const { ran, runs, sequence } = job
      const works = working.has(sequence)
      hold(!works || work[at++]!.sequence === sequence, 'work is in order')
      const goesOn = runs && job.may && job.ready
      hold(!runs || preempted === 0, 'the last ones lose their pages')
      if (ran && !runs) preempted++
      if (goesOn && ran && job.generates) hold(works || noPage, 'who generates has a token in each step')
      if (goesOn && !ran) hold(works, 'who starts has a share')
      if (runs && !ran) hold(!blocked, 'nobody overtakes who waits')
      const unfinished = goesOn && !job.generates && sequence.pending > (works && work[at - 1]!.samples ? 1 : 0)
      if (unfinished && !job.asked.scoresPrompt) hold(full || (!works && noPage), 'prompts fill the step')
      if (job.waitsForLeader) continue
      first ??= job
      if (runs || ran) continue
      const fits = this.pages.needed(sequence.length) + 1 + this.scheduler.running <= this.pages.available
      const room = fits && !full && this.scheduler.running < maxSequences
      hold(!room || !admit || preemptions > 0 || blocked, 'nobody waits while there is room')
      blocked = true
    }
    hold(at === work.length, 'everybody works once')
    hold(preempted === preemptions, 'preemptions are counted')
    const mayGo = first?.may && first.ready && this.outside.length === 0 && (admit || first.runs)
    hold(!mayGo || work[0]?.sequence === first!.sequence, 'the first one always goes on')
  }
}
