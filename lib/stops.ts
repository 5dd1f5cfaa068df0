/** Stop strings, found in text that arrives in pieces. */

import { InputError } from './errors.ts'

/** A state of the matcher: some stop begins with the last `length` characters of the text. */
interface Node {
  readonly length: number
  readonly next: Map<number, Node> // by UTF-16 unit
  /** The state that the longest proper suffix of this one is. */
  fallback: Node | undefined
  /** The longest stop that ends here. */
  stop: string | undefined
}

/** What `push` gives out: text that no stop can take back any more, and whether a stop was found after it. */
export interface StopResult {
  text: string
  stopped: boolean
  /** The stop that was found; it and what follows it are not in any text. */
  stop?: string
}

/**
 * Watches one generation for stop strings (Aho-Corasick: linear in the text, however long and many the stops are).
 * The stop that is complete first wins, of several that end together the longest: so the text does not depend on how it
 * was cut into pieces, and no generation goes on only to see whether a longer stop might still match.
 */
export class StopMatcher {
  readonly #root: Node = { length: 0, next: new Map(), fallback: undefined, stop: undefined }
  #state = this.#root
  #held = ''
  #found: string | undefined

  /** @throws InputError ERR_OPTION_STOP: a stop is empty, or has half a surrogate pair, which no text contains. */
  constructor(stops: readonly string[]) {
    for (const stop of stops) {
      if (typeof stop !== 'string' || stop === '' || /\p{Surrogate}/u.test(stop)) {
        throw new InputError('ERR_OPTION_STOP', `a stop must be well-formed text, not empty; found ${JSON.stringify(stop)}`)
      }
      this.#add(stop)
    }
    this.#linkFallbacks()
  }

  /**
   * Takes the next piece and gives out all text that is certain: it withholds the longest end of the text that is a proper
   * beginning of a stop, and half of a surrogate pair. After a stop nothing more comes out.
   */
  push(text: string): StopResult {
    if (this.#found !== undefined) return { text: '', stopped: true, stop: this.#found }
    const all = this.#held + text
    for (let at = this.#held.length; at < all.length; at++) {
      this.#state = this.#step(this.#state, all.charCodeAt(at))
      const { stop } = this.#state
      if (stop !== undefined) {
        this.#held = ''
        this.#found = stop
        return { text: all.slice(0, at + 1 - stop.length), stopped: true, stop }
      }
    }
    const certain = all.length - (this.#state.length || (/[\ud800-\udbff]$/.test(all.slice(-1)) ? 1 : 0))
    this.#held = all.slice(certain)
    return { text: all.slice(0, certain), stopped: false }
  }

  /** What was withheld, when no text follows. */
  end(): string {
    const rest = this.#held
    this.#held = ''
    this.#state = this.#root
    return rest
  }

  #step(from: Node, unit: number): Node {
    for (let node: Node | undefined = from; node; node = node.fallback) {
      const next = node.next.get(unit)
      if (next) return next
    }
    return this.#root
  }

  #add(stop: string): void {
    let node = this.#root
    for (let at = 0; at < stop.length; at++) {
      const unit = stop.charCodeAt(at)
      const next: Node = node.next.get(unit) ?? { length: at + 1, next: new Map(), fallback: undefined, stop: undefined }
      node.next.set(unit, next)
      node = next
    }
    node.stop = stop
  }

  /** Breadth first, so that shorter states have their fallback already. */
  #linkFallbacks(): void {
    const queue = [this.#root]
    for (const node of queue) {
      for (const [unit, next] of node.next) {
        next.fallback = node.fallback ? this.#step(node.fallback, unit) : this.#root
        next.stop ??= next.fallback.stop
        queue.push(next)
      }
    }
  }
}
