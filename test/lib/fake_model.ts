/** The model of the fake device: what it answers, said without pages, batches and steps. And who asks it. */
import type { Weight } from '../../binding.d.ts'
import { builtinConfigs } from '../../lib/config.ts'
import { type RuleOptions, TokenRules } from '../../lib/edits.ts'
import type { Engine, EngineLimits, Job } from '../../lib/engine.ts'
import type { SamplingParameters } from '../../lib/sampling.ts'
import { type FinishReason, Sequence, type SequenceOptions } from '../../lib/sequence.ts'
import type { Model } from '../../lib/weights.ts'
import { Random } from '../ops/numbers.ts'

// Of jest's global scope every look-up takes a microsecond.
const { imul, max, round } = Math

export const vocab = 2 ** 15
export const layers = 2
export const poison = -1
/** 31 bits of two numbers, or poison. */
export function mix(a: number, b: number): number {
  if (a < 0 || b < 0) return poison
  let h = imul(a ^ imul(b, 0x9e3779b1), 0x85ebca6b)
  h ^= h >>> 15
  h = imul(h, 0xc2b2ae35)
  return (h ^ (h >>> 13)) & 0x7fffffff
}

/** Numbers in [0, n) that are the same every time. */
export function random(seed: number): (n: number) => number {
  const numbers = new Random(seed)
  return n => numbers.u32() % n
}

export const logprobOf = (hash: number, id: number): number => (hash < 0 ? Number.NaN : -(mix(hash, id) % 1024) / 64)
export const topOf = (hash: number, i: number): number => mix(hash, i + 7) % vocab
const bits = (x: number): number => (x === Number.NEGATIVE_INFINITY ? 1 << 29 : round((x + 200) * 1024))

/** Values of one output row's Sampling. */
export interface Draw {
  readonly temperature: number
  readonly topP: number
  readonly minP: number
  readonly topK: number
  readonly seed: readonly [number, number]
}

/** The id drawn from a row for a position; greedy depends on the row alone. */
export function draw(hash: number, position: number, { temperature, topP, minP, topK, seed }: Draw): number {
  if (temperature === 0 || hash < 0) return hash < 0 ? poison : hash % vocab
  let h = hash
  for (const x of [position, bits(temperature), bits(topP), bits(minP), topK, seed[0] >>> 1, seed[1] >>> 1]) h = mix(h, x)
  return h % vocab
}

/** Counts matter only to penalties; edits have no order. */
export function adjusted(
  hash: number,
  edits: ReadonlyMap<number, readonly [bias: number, count: number]>,
  [repetition, frequency, presence]: readonly [number, number, number],
  mask: ArrayLike<number> = [],
): number {
  const counts = repetition !== 1 || frequency !== 0 || presence !== 0
  let sum = counts ? mix(mix(bits(repetition), bits(frequency)), bits(presence)) : 0
  for (const [id, [bias, count]] of edits) {
    if ((counts && count >= 0) || bias !== 0) sum = (sum + mix(mix(id, bits(bias)), counts ? count + 1 : 0)) & 0x7fffffff
  }
  for (let i = 0; i < mask.length; i++) if (mask[i] !== 0) sum = (sum + mix(i, mask[i]! >>> 1)) & 0x7fffffff
  return sum === 0 ? hash : mix(hash, sum)
}

/** A weight is its name, a number, alone. */
const weight = (name: number) => ({ shape: [vocab, 1], dtype: 'BF16', file: '', name }) as unknown as Weight
export const nameOf = (one: Weight) => (one as unknown as { name: number }).name

export const config = { ...builtinConfigs['llama3.2-1b'], layers, kvHeads: 1, headDim: 2, vocab: 1 }
export const model: Model = {
  embed: weight(0),
  layers: Array.from({ length: layers }, (_, l) => {
    const [attnNorm, wqkv, ffnNorm, wGateUp] = [weight(0), weight(0), weight(0), weight(0)]
    return { attnNorm, wqkv, ffnNorm, wGateUp, wo: weight(2 * l + 1), wDown: weight(2 * l + 2) }
  }),
  norm: weight(0),
  head: weight(0),
  invFreq: undefined as never,
  eps: 0,
}

/** The same model without pages, batches and steps: give it the tokens, one after the other. */
export class Reference {
  readonly #histories = new Array<number>(layers).fill(0)
  #position = 0

  /** The hash that the token after this one is drawn from. */
  push(token: number): number {
    let x = mix(token, 1)
    for (let l = 0; l < layers; l++) {
      const history = mix(mix(this.#histories[l]!, mix(x, this.#position)), x)
      this.#histories[l] = history
      x = mix(x + 2 * l + 1, mix(history, x))
      x = mix(x + 2 * l + 2, x)
    }
    this.#position++
    return x
  }
}

export const limits: EngineLimits = {
  context: 64,
  maxSequences: 4,
  maxBatchTokens: 16,
  maxQueue: 2 ** 20,
  pageSize: 4,
  pages: 64,
  prefixCache: true,
  pipeline: true,
}
export const greedy: SamplingParameters = { temperature: 0, topP: 1, topK: 0, minP: 0, seed: [0, 0] }
export const seeded = (seed: number): SamplingParameters => ({ ...greedy, temperature: 0.5, topP: 0.9, seed: [seed, 1] })

export interface Request {
  readonly prompt: readonly number[]
  readonly maxTokens: number
  readonly sampling: SamplingParameters
  readonly options?: SequenceOptions
  /** Penalties and the like; its mask, as of what was generated. */
  readonly rules?: RuleOptions | undefined
  readonly mask?: (generated: readonly number[]) => Int32Array
  /** What its user does with this token. */
  readonly stop?: { readonly at: number; readonly how: 'stop' | 'abort' } | undefined
  readonly onToken?: (generated: readonly number[]) => void
}

/** What a request was told. */
export interface Answer {
  readonly ids: number[]
  readonly logprobs: number[]
  readonly top: Parameters<Job['token']>[2][]
  readonly scored: number[]
  end?: FinishReason
  error?: Error
}

/** Tokens that follow a prompt, and their log-probabilities. */
export function continuation({ prompt, maxTokens, sampling, rules, mask }: Request): Pick<Answer, 'ids' | 'logprobs' | 'top'> {
  const reference = new Reference()
  let hash = 0
  for (const token of prompt) hash = reference.push(token)
  const answer: Pick<Answer, 'ids' | 'logprobs' | 'top'> = { ids: [], logprobs: [], top: [] }
  while (answer.ids.length < maxTokens) {
    const hidden = rules ? ruled(hash, rules, prompt, answer.ids, mask?.(answer.ids)) : hash
    const id = draw(hidden, prompt.length + answer.ids.length, sampling)
    answer.ids.push(id)
    answer.logprobs.push(logprobOf(hash, id))
    const top = Array.from({ length: sampling.top ?? 0 }, (_, i) => topOf(hash, i))
    answer.top.push(top.map(one => ({ id: one, logprob: logprobOf(hash, one) })))
    hash = reference.push(id)
  }
  return answer
}

function ruled(hash: number, rules: RuleOptions, prompt: readonly number[], ids: readonly number[], mask?: Int32Array): number {
  const edits = new Map([...rules.bias].map(([id, bias]): [number, [bias: number, count: number]] => [id, [bias, -1]]))
  const see = (id: number, times: number, bias?: number) => {
    const [before, count] = edits.get(id) ?? [0, -1]
    edits.set(id, [bias ?? before, times < 0 ? count : max(0, count) + times])
  }
  for (const id of prompt) see(id, 0)
  for (const id of ids) see(id, 1)
  if (ids.length < rules.minTokens) for (const id of rules.stopTokens) see(id, -1, Number.NEGATIVE_INFINITY)
  return adjusted(hash, edits, [rules.repetition, rules.frequency, rules.presence], mask)
}

/** What is wrong with an answer; '' if any engine gives it to this request, or had begun to when it was aborted. */
export function fault(request: Request, answer: Answer, aborted = false): string {
  const { prompt, maxTokens, stop } = request
  let end: FinishReason = stop && stop.at <= maxTokens ? stop.how : 'length'
  let count = end === 'length' ? maxTokens : stop!.at
  if (aborted && answer.end === 'abort') [end, count] = ['abort', Math.min(count, answer.ids.length)]
  const right = continuation({ ...request, maxTokens: count })
  const top = ({ top }: Pick<Answer, 'top'>) => (request.sampling.top ? JSON.stringify(top) : '')
  const found = `${answer.ids} ${answer.logprobs} ${answer.error ?? answer.end} ${top(answer)}`
  const expected = `${right.ids} ${right.logprobs} ${end} ${top(right)}`
  return found === expected ? '' : `after [${prompt}]: ${found}, expected ${expected}`
}

/** Submits a request; the promise is fulfilled with its answer, whatever that is. */
export function ask(engine: Engine, request: Request): { sequence: Sequence; answer: Promise<Answer>; soFar: Answer } {
  const { prompt, maxTokens, options, stop, rules } = request
  const sampling = rules ? { ...request.sampling, rules: new TokenRules(rules) } : request.sampling
  const sequence = new Sequence(prompt, maxTokens, sampling, options)
  const soFar: Answer = { ids: [], logprobs: [], top: [], scored: [] }
  const answer = new Promise<Answer>(resolve => {
    // The engine catches what its users throw: what is not right is to be seen in the answer.
    const over = (how: Partial<Answer>) => {
      const again = soFar.end || soFar.error ? { error: new Error('it ended twice') } : {}
      resolve(Object.assign(soFar, how, again))
    }
    engine.submit({
      sequence,
      token: (id, logprob, top) => {
        soFar.ids.push(id)
        soFar.logprobs.push(logprob)
        soFar.top.push(top)
        request.onToken?.(soFar.ids)
        if (soFar.ids.length !== stop?.at) return undefined
        if (stop.how === 'stop') return 'stop'
        engine.abort(sequence)
        return undefined
      },
      scored: (position, logprob) => {
        soFar.scored[position - 1] = logprob // again after preemption
      },
      end: end => {
        const known = sequence.tokens.slice(prompt.length)
        over(`${known}` === `${soFar.ids}` ? { end } : { end, error: new Error(`its sequence has ${known}`) })
      },
      fail: error => over({ error }),
    })
  })
  return { sequence, answer, soFar }
}

/** What is wrong with the first of them; nothing: []. */
export const faults = (asked: readonly Request[], answers: readonly Answer[]): string[] =>
  asked
    .map((one, i) => fault(one, answers[i]!))
    .filter(Boolean)
    .slice(0, 3)
