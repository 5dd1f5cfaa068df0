/** Guesses what comes next from what came before: text that repeats itself, or its prompt, is found without a model. Pure. */

/** Longest and shortest run of last tokens that is looked for. */
const longest = 4
const shortest = 2

/** Of one sequence; it remembers where every run of tokens was followed last. */
export class PromptLookup {
  readonly #most: number
  /** A run of tokens -> the position after it, of its last occurrence that is followed by a token. */
  readonly #after = new Map<string, number>()
  #indexed = 0

  /** most: tokens guessed at once. */
  constructor(most: number) {
    this.#most = most
  }

  /** What followed the last tokens where they occurred before; nothing if they are new. */
  guess(tokens: readonly number[]): readonly number[] {
    for (; this.#indexed < tokens.length; this.#indexed++) {
      for (let n = shortest; n <= longest && n <= this.#indexed; n++) {
        this.#after.set(run(tokens, this.#indexed, n), this.#indexed)
      }
    }
    for (let n = Math.min(longest, tokens.length); n >= shortest; n--) {
      const at = this.#after.get(run(tokens, tokens.length, n))
      if (at !== undefined) return tokens.slice(at, at + this.#most)
    }
    return []
  }
}

/** The n tokens before a position. */
const run = (tokens: readonly number[], position: number, n: number) => tokens.slice(position - n, position).join()
