/** One request: its tokens, its pages, how it is sampled, how far it is computed. Pure. */
import type { SamplingParameters } from './sampling.ts'

/** Why a sequence ended. */
export type FinishReason = 'stop' | 'length' | 'abort'

export class Sequence {
  /** Prompt, then what was generated. */
  readonly tokens: number[]
  readonly promptLength: number
  /** Most tokens to generate; prompt and answer together fit into the context. */
  readonly maxTokens: number
  readonly sampling: SamplingParameters
  /** Tokens whose keys and values are in the cache. */
  computed = 0
  /** Page numbers, in order of positions; empty before it runs and after it ended. */
  pages: number[] = []

  constructor(prompt: readonly number[], maxTokens: number, sampling: SamplingParameters) {
    this.tokens = [...prompt]
    this.promptLength = prompt.length
    this.maxTokens = maxTokens
    this.sampling = sampling
  }

  /** Tokens generated so far. */
  get generated(): number {
    return this.tokens.length - this.promptLength
  }

  /** Tokens that the next step has to compute: the prompt at first, then one. */
  get pending(): number {
    return this.tokens.length - this.computed
  }
}
