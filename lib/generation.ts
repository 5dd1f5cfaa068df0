/** One answer in the making: iterate it for the pieces, or await it for the whole. */
import type { TokenLogprob } from './results.ts'
import type { FinishReason } from './sequence.ts'

/** What a generation gives out at a time. */
export interface Piece {
  /** Whole characters; '' while a character lacks bytes or a stop string may be beginning. */
  readonly text: string
  /** The tokens since the last piece. */
  readonly tokens: readonly number[]
  /** Their natural log-probabilities. */
  readonly logprobs: readonly number[]
  /** For each of them the most probable tokens there, as many as topLogprobs says. */
  readonly topLogprobs: readonly (readonly TokenLogprob[])[]
}

/** Of a token of the prompt. */
export interface PromptLogprob extends TokenLogprob {
  /** The most probable tokens there, as many as topLogprobs says. */
  readonly top: readonly TokenLogprob[]
}

/** Tokens that a generation took and gave. */
export interface Usage {
  /** Of the prompt, as the model saw it. */
  readonly promptTokens: number
  /** Generated, a stop token included. */
  readonly completionTokens: number
  /** Both together. */
  readonly totalTokens: number
}

/** A generation that has ended. */
export interface Completion {
  /** Without the stop string. */
  readonly text: string
  /** Everything generated, a stop token included. */
  readonly tokens: readonly number[]
  /** Natural log-probabilities of the tokens as the model has them: before penalties, biases, format, temperature and truncation. */
  readonly logprobs: readonly number[]
  /** For each token the most probable ones there, as many as topLogprobs says. */
  readonly topLogprobs: readonly (readonly TokenLogprob[])[]
  /** Of the tokens of the prompt from the second on, if promptLogprobs was asked for. */
  readonly promptLogprobs?: readonly PromptLogprob[]
  /** 'stop': a stop token or stop string; 'length': maxTokens or the end of the context; 'abort': abort() was called. */
  readonly finishReason: FinishReason
  /** What it took. */
  readonly usage: Usage
}

/**
 * Starts when it is created and goes on whether or not anybody looks. Leaving a `for await` early aborts it.
 * Every iterator sees all pieces from the first.
 */
export class Generation implements AsyncIterable<Piece>, PromiseLike<Completion> {
  readonly #pieces: Piece[] = []
  readonly #abort: () => void
  readonly #completion: Promise<Completion>
  #resolve!: (completion: Completion) => void
  #reject!: (error: unknown) => void
  #ended = false
  #error: { readonly reason: unknown } | undefined
  #waiting: (() => void)[] = []

  /** For the library: llama.generate() and llama.chat() make generations. */
  constructor(abort: () => void) {
    this.#abort = abort
    this.#completion = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.#completion.catch(() => {}) // who only iterates gets the error there
  }

  /** Ends it with what there is: finishReason 'abort'. Nothing happens when it has ended already. */
  abort(): void {
    this.#abort()
  }

  // biome-ignore lint/suspicious/noThenProperty: a generation is awaited
  then<A = Completion, B = never>(
    fulfilled?: ((completion: Completion) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#completion.then(fulfilled, rejected)
  }

  catch<B = never>(rejected?: ((reason: unknown) => B | PromiseLike<B>) | null): Promise<Completion | B> {
    return this.#completion.catch(rejected)
  }

  finally(ended?: (() => void) | null): Promise<Completion> {
    return this.#completion.finally(ended)
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Piece, undefined, undefined> {
    try {
      for (let next = 0; ; ) {
        if (next < this.#pieces.length) yield this.#pieces[next++]!
        else if (this.#error) throw this.#error.reason
        else if (this.#ended) return
        else await new Promise<void>(resolve => this.#waiting.push(resolve))
      }
    } finally {
      this.#abort()
    }
  }

  /** For the library. */
  push(piece: Piece): void {
    this.#pieces.push(piece)
    this.#notify()
  }

  /** For the library. */
  finish(completion: Completion): void {
    this.#ended = true
    this.#resolve(completion)
    this.#notify()
  }

  /** For the library. */
  fail(reason: unknown): void {
    this.#ended = true
    this.#error = { reason }
    this.#reject(reason)
    this.#notify()
  }

  #notify(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }
}
