/** What users ask of an engine, at random: prompts that begin alike, in every way that there is. */
import { setMaxListeners } from 'node:events'
import { Engine, type EngineLimits, type EngineStats } from '../../lib/engine.ts'
import type { Sequence, SequenceOptions } from '../../lib/sequence.ts'
import { FakeDevice } from './fake_device.ts'
import {
  type Answer,
  ask,
  config,
  continuation,
  fault,
  greedy,
  limits,
  logprobOf,
  model,
  Reference,
  type Request,
  random,
  seeded,
  vocab,
} from './fake_model.ts'

export type Random = (n: number) => number
export const tokens = (count: number, of: Random) => Array.from({ length: count }, () => of(vocab))
export const texts = (count: number, length: number, of: Random) => Array.from({ length: count }, () => tokens(length, of))
export const empty = { running: 0, waiting: 0, pages: { used: 0 } }
export const turn = () => new Promise(resolve => setImmediate(resolve))

/** The beginning of one of the texts, and in half of the cases something of its own after it. */
export function prompt(of: Random, some: readonly number[][], longest: number): number[] {
  const shared = some[of(some.length)]!.slice(0, 1 + of(longest))
  return [...shared, ...tokens(of(2) * of(longest - shared.length + 1), of)]
}

/** What really comes next; every third time with a mistake. */
export function guess(sampling: Request['sampling'], of: Random): NonNullable<SequenceOptions['guess']> {
  return known => {
    const { ids } = continuation({ prompt: known, maxTokens: 1 + of(4), sampling })
    if (of(3) === 0) ids[of(ids.length)] = of(vocab)
    return ids
  }
}

/** Log-probabilities of the tokens of a prompt, from the second on. */
export function scores(asked: readonly number[]): number[] {
  const reference = new Reference()
  const hashes = asked.map(token => reference.push(token))
  return asked.slice(1).map((token, i) => logprobOf(hashes[i]!, token))
}

/** Users who ask one after the other, in every way that there is, of an engine with little room. */
export class Crowd {
  readonly #of: Random
  readonly #engine: Engine
  readonly #texts: number[][]
  readonly #capacity: number
  readonly limits: EngineLimits
  readonly faults: string[] = []
  /** Requests that came later than one that had not ended yet, at most. */
  overtaken = 0
  asked = 0

  /** The sequences that were asked. */
  readonly sequences: WeakRef<Sequence>[] = []
  readonly signal = new AbortController().signal

  constructor(seed: number, pages: number) {
    const of = random(seed)
    setMaxListeners(0, this.signal)
    this.#of = of
    const maxSequences = 1 + of(8)
    this.limits = {
      ...limits,
      pages,
      pageSize: 1 + of(6),
      maxSequences,
      maxBatchTokens: maxSequences + of(24),
      prefixCache: of(4) > 0,
    }
    this.#capacity = Math.min(this.limits.pages * this.limits.pageSize, limits.context)
    this.#texts = texts(6, 24, of)
    this.#engine = new Engine(new FakeDevice({ seed }), model, config, this.limits)
  }

  get stats(): EngineStats {
    return this.#engine.stats
  }

  async ask(count: number): Promise<void> {
    const user = async () => {
      while (this.asked < count) {
        if (this.#of(20) === 0) await turn()
        if (this.#of(50) === 0) await this.#evaluate()
        else await this.#generate()
      }
    }
    await Promise.all(Array.from({ length: 1 + this.#of(24) }, user))
  }

  #prompt(): number[] {
    return prompt(this.#of, this.#texts, Math.min(24, this.#capacity))
  }

  async #evaluate(): Promise<void> {
    const asked = this.#prompt()
    const reference = new Reference()
    const expected = asked.map(token => Math.fround(reference.push(token)))
    const found = await this.#engine.evaluate(asked, this.signal)
    if (`${found}` !== `${expected}`) this.faults.push(`evaluation of ${asked}: ${found}, expected ${expected}`)
  }

  /** One request, or several with the same prompt. */
  async #generate(): Promise<void> {
    const of = this.#of
    const asked = this.#prompt()
    const most = this.#capacity - asked.length + 1
    const maxTokens = 1 + of(Math.min(8, most))
    const priority = of(4)
    const n = of(8) === 0 ? 1 + of(4) : 1
    let leader: SequenceOptions['leader']
    const answers: Promise<void>[] = []
    for (let i = 0; i < n; i++) {
      const sampling = of(2) === 0 ? greedy : seeded(of(1000))
      const options: SequenceOptions = {
        priority,
        lockstep: of(8) === 0,
        ...(of(8) === 0 && { guess: guess(sampling, of) }),
        ...(of(8) === 0 && { scoresPrompt: true }),
        ...(leader && { leader }),
      }
      const stop = of(6) === 0 ? { at: 1 + of(4), how: of(2) === 0 ? ('stop' as const) : ('abort' as const) } : undefined
      const one: Request = { prompt: asked, maxTokens, sampling, options, stop }
      const { sequence, answer } = ask(this.#engine, one)
      leader ??= sequence
      this.sequences.push(new WeakRef(sequence))
      answers.push(this.#check(one, answer, of(10) === 0 ? sequence : undefined))
    }
    await Promise.all(answers)
  }

  async #check(one: Request, answer: Promise<Answer>, aborted?: Sequence): Promise<void> {
    const came = ++this.asked
    for (let turns = this.#of(8); aborted && turns >= 0; turns--) {
      if (turns === 0) this.#engine.abort(aborted)
      else await turn()
    }
    const given = await answer
    this.overtaken = Math.max(this.overtaken, this.asked - came)
    const wrong = fault(one, given, aborted !== undefined)
    if (wrong) this.faults.push(wrong)
    if (!one.options?.scoresPrompt || given.end === 'abort') return
    const expected = scores(one.prompt)
    if (`${given.scored}` !== `${expected}`) this.faults.push(`scores of ${one.prompt}: ${given.scored}, expected ${expected}`)
  }
}
