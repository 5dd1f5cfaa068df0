/** Guesses what comes next from what came before: text that repeats itself, or its prompt, is found without a model. Pure. */

/** Longest and shortest run of last tokens that is looked for. */
const longest = 4
const shortest = 2
/** Tokens taken in by one guess; those of a long prompt follow in the next steps, so that no step waits for all of them. */
export const mostAtOnce = 1024

/** Of one sequence; it remembers where every run of tokens was followed last. */
export class PromptLookup {
  readonly #most: number
  /** Hash of a run of tokens -> the position after it, of its last occurrence that is followed by a token. */
  readonly #after = new Map<number, number>()
  #indexed = 0

  /** most: tokens guessed at once. */
  constructor(most: number) {
    this.#most = most
  }

  /** What followed the last tokens where they occurred before; nothing if they are new. */
  guess(tokens: readonly number[]): readonly number[] {
    const end = Math.min(tokens.length, this.#indexed + mostAtOnce)
    for (; this.#indexed < end; this.#indexed++) {
      for (let n = shortest; n <= longest && n <= this.#indexed; n++)
        this.#after.set(hash(tokens, this.#indexed, n), this.#indexed)
    }
    for (let n = Math.min(longest, tokens.length); n >= shortest; n--) {
      const at = this.#after.get(hash(tokens, tokens.length, n))
      if (at !== undefined && isSame(tokens, at, n)) return tokens.slice(at, at + this.#most)
    }
    return []
  }
}

/** Of the n tokens before a position. */
function hash(tokens: readonly number[], position: number, n: number): number {
  let mixed = Math.imul(n, 0x85ebca6b)
  for (let i = position - n; i < position; i++) mixed = Math.imul(mixed ^ tokens[i]!, 0x9e3779b1) ^ (mixed >>> 15)
  return mixed
}

/** Whether the n tokens before a position are the last ones. */
function isSame(tokens: readonly number[], position: number, n: number): boolean {
  for (let i = 1; i <= n; i++) if (tokens[position - i] !== tokens[tokens.length - i]) return false
  return true
}
