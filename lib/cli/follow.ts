/** Writes a generation out as it comes and measures it as its reader sees it. */
import type { Completion, Generation } from '../generation.ts'
import type { Stop } from './stop.ts'
import { duration } from './terminal.ts'

export interface Followed {
  readonly completion: Completion
  readonly timing: Timing
}

/** Until the generation ends, or Ctrl-C or a closed stdout ends it. */
export async function follow(generation: Generation, stop: Stop, write: (text: string) => void): Promise<Followed> {
  const timing = new Timing()
  const work = async () => {
    for await (const { text, tokens } of generation) {
      timing.count(tokens.length)
      if (text) write(text)
    }
    return { completion: await generation, timing }
  }
  return stop.during(() => generation.abort(), work)
}

/** Starts when it is made, together with the generation. */
export class Timing {
  readonly #started = performance.now()
  #first = Number.NaN
  #last = Number.NaN
  #tokens = 0

  count(tokens: number): void {
    if (tokens === 0) return
    this.#last = performance.now()
    if (this.#tokens === 0) this.#first = this.#last
    this.#tokens += tokens
  }

  /** Until the first token was there: the prompt's computation, and in a fresh model its first recording. */
  get firstTokenMilliseconds(): number | undefined {
    return this.#tokens > 0 ? this.#first - this.#started : undefined
  }

  /** Of decoding alone, so without the first token; undefined when there are no others. */
  get tokensPerSecond(): number | undefined {
    return this.#tokens > 1 ? (1000 * (this.#tokens - 1)) / (this.#last - this.#first) : undefined
  }

  /** '64 tokens, 77.1 tokens/s, first token after 22 ms' */
  toString(): string {
    const rate = this.tokensPerSecond
    const first = this.firstTokenMilliseconds
    const parts = [`${this.#tokens} token${this.#tokens === 1 ? '' : 's'}`]
    if (rate !== undefined) parts.push(`${rate.toFixed(1)} tokens/s`)
    if (first !== undefined) parts.push(`first token after ${duration(first)}`)
    return parts.join(', ')
  }
}
