/** Random requests for the shadow engine; everything follows from a seed. */
import { type Asked, continuation, hold, type Random, randoms, ShadowEngine, tokens, vocabulary } from './shadow_engine.ts'

const kinds = ['group', 'follow', 'ready', 'guess', 'lockstep', 'score', 'stop', 'priority'] as const
const events = ['abort', 'clear', 'outside', 'closed', 'fail'] as const

/** Requests of every kind that come, go and fail at any time, in little room. Each trial has some kinds often, others never. */
export class Trial {
  readonly engine: ShadowEngine
  readonly limits
  readonly #random: Random
  readonly #beginnings: number[][]
  readonly #capacity: number
  /** Of 32. */
  readonly #often: Record<(typeof kinds)[number] | (typeof events)[number], number>

  constructor(seed: number) {
    const random = randoms(seed)
    this.#random = random
    const size = 1 + random(6)
    const maxSequences = 1 + random(random(2) === 0 ? 3 : 10)
    const least = 2 + random(10)
    this.limits = {
      size,
      count: least + random(4) * random(24), // often no more than one sequence needs
      maxSequences,
      maxBatchTokens: maxSequences + random(2) * random(24),
      prefixCache: random(4) > 0,
      pipelined: random(4) > 0,
    }
    this.#capacity = Math.min(least * size, 40)
    this.#beginnings = Array.from({ length: 3 }, () => tokens(random, 40))
    const often = [...kinds.map(kind => [kind, random(3) * random(20)]), ...events.map(event => [event, random(2) * random(5)])]
    this.#often = Object.fromEntries(often)
    this.engine = new ShadowEngine(this.limits)
  }

  run(requests: number): void {
    const [engine, random] = [this.engine, this.#random]
    const pace = 1 + random(12)
    let bound = 100
    for (let asked = 0; asked < requests || engine.jobs.length > 0; ) {
      for (; asked < requests && random(pace) === 0; asked++) bound += this.#add()
      if (this.#is('abort') && engine.jobs.length > 0) engine.remove(engine.jobs[random(engine.jobs.length)]!)
      if (this.#is('clear')) engine.pages.clear()
      this.#takeOutside()
      for (const job of engine.jobs) if (job.asked.ready) job.ready = random(3) > 0
      engine.step({ admit: !this.#is('closed'), fails: this.#is('fail') })
      hold(engine.steps < bound, 'all come to an end')
    }
    engine.step()
    for (const job of engine.ended) {
      const { tokens, promptLength, generated } = job.sequence
      hold(`${tokens.slice(promptLength)}` === `${continuation(job.asked.prompt, job.salt, generated)}`, 'as if it were alone')
    }
    engine.pages.release(engine.outside)
    hold(engine.pages.available === engine.pages.count, 'no page is lost')
    engine.pages.clear()
    hold(engine.pages.idle === 0 && engine.pages.available === engine.pages.count, 'clear leaves nothing')
  }

  #is(what: (typeof kinds)[number] | (typeof events)[number]): boolean {
    return this.#random(32) < this.#often[what]
  }

  /** A request, or several with the same prompt. Gives a bound of the steps that they take. */
  #add(): number {
    const random = this.#random
    const { size } = this.limits
    const longest = Math.min(this.#capacity, 30)
    const followed = this.#is('follow') && this.engine.ended[random(this.engine.ended.length)]?.sequence.tokens
    const known = (followed || this.#beginnings[random(3)]!.slice(0, 1 + random(longest))).slice(0, longest)
    const prompt = [...known, ...tokens(random, random(2) * random(longest - known.length + 1))]
    if (random(4) === 0 && prompt.length > size) prompt.length -= prompt.length % size
    const most = this.#capacity - prompt.length + 1
    let leader: Asked['leader']
    const n = this.#is('group') ? 2 + random(4) : 1
    for (let i = 0; i < n; i++) {
      const salt = random(4)
      const { sequence } = this.engine.add({
        prompt,
        salt,
        maxTokens: 1 + random(Math.min(12, most)),
        stopsAfter: this.#is('stop') ? 1 + random(6) : 12,
        priority: this.#is('priority') ? random(8) / 32 : 0, // of few requests a whole one would overtake all
        lockstep: this.#is('lockstep'),
        scoresPrompt: this.#is('score'),
        ...(this.#is('ready') && { ready: () => true }),
        ...(this.#is('guess') && { guess: (known: readonly number[]) => this.#guess(known, salt) }),
        ...(leader && { leader }),
      })
      leader ??= sequence
    }
    return n * 8 * (prompt.length + 30)
  }

  /** What really comes next; every third time with a mistake. */
  #guess(known: readonly number[], salt: number): number[] {
    const guess = continuation(known, salt, 1 + this.#random(5))
    if (this.#random(3) === 0) guess[this.#random(guess.length)] = this.#random(vocabulary)
    return guess
  }

  #takeOutside(): void {
    const { engine } = this
    if (engine.outside.length > 0 ? this.#random(3) > 0 : !this.#is('outside')) return
    engine.pages.release(engine.outside)
    engine.outside = engine.outside.length > 0 ? [] : engine.pages.take(this.#random(engine.pages.available + 1))!
  }
}
