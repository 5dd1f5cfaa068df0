/** One request: its tokens, its pages, how it is sampled, how far it is computed. Pure. */
import type { Found } from './pages.ts'
import type { SamplingParameters } from './sampling.ts'

/** Why a sequence ended. */
export type FinishReason = 'stop' | 'length' | 'abort'

/** What a sequence may ask of the scheduler. */
export interface SequenceOptions {
  /** Higher goes first; see Scheduler. */
  readonly priority?: number
  /** The next step needs the token of this one: it is not prepared before that has been read. */
  readonly lockstep?: boolean
  /** Whether its next token may be sampled; always, if absent. */
  readonly ready?: () => boolean
  /** Every row of the prompt is looked at. */
  readonly scoresPrompt?: boolean
  /** Guesses of the tokens after those that are known, to be verified in one step. */
  readonly guess?: (tokens: readonly number[]) => readonly number[]
  /** A sequence with the same prompt, whose pages of it this one shares as soon as they are computed. */
  readonly leader?: Sequence
}

export class Sequence {
  /** Prompt, then what was generated and read. */
  readonly tokens: number[]
  readonly promptLength: number
  /** Most tokens to generate; prompt and answer together fit into the context. */
  readonly maxTokens: number
  readonly sampling: SamplingParameters
  readonly options: SequenceOptions
  /** Tokens whose keys and values are in the cache once the steps that are enqueued have run. */
  computed = 0
  /** Of those, as far as the steps are known to have run. */
  settled = 0
  /** Tokens sampled by steps that are enqueued, not read yet; the row of the last one in its step. */
  ahead = 0
  row = -1
  /** Page numbers, in order of positions; empty while it waits and after it ended. */
  pages: number[] = []
  /** Counts the changes of `pages`. */
  version = 0
  /** How many of them, from the first on, others may find and share. */
  published = 0
  /** What the cache had of its tokens when it was about to start. */
  readonly found: Found = { pages: [], chains: [] }
  /** How often it has lost its pages: work of an earlier epoch says nothing about them. */
  epoch = 0
  /** Its place in every line, set by the scheduler: lower goes first. */
  order = 0
  arrival = 0
  /** It was removed. */
  ended = false

  constructor(prompt: readonly number[], maxTokens: number, sampling: SamplingParameters, options: SequenceOptions = {}) {
    this.tokens = [...prompt]
    this.promptLength = prompt.length
    this.maxTokens = maxTokens
    this.sampling = sampling
    this.options = options
  }

  /** Tokens generated and read so far. */
  get generated(): number {
    return this.tokens.length - this.promptLength
  }

  /** Tokens that exist on the device. */
  get length(): number {
    return this.tokens.length + this.ahead
  }

  /** Tokens that are not computed. */
  get pending(): number {
    return this.length - this.computed
  }
}
