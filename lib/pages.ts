/** The pages of the key/value cache: who has which. Pure bookkeeping; the bytes are the device's. */

/** Hands out page numbers 0 ... count - 1. Every page is free or in one sequence. */
export class Pages {
  /** Pages in all. */
  readonly count: number
  /** Tokens a page holds. */
  readonly size: number
  readonly #free: number[]
  readonly #taken: Uint8Array

  constructor(count: number, size: number) {
    this.count = count
    this.size = size
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i)
    this.#taken = new Uint8Array(count)
  }

  /** Pages free now. */
  get free(): number {
    return this.#free.length
  }

  /** Pages that this many tokens need. */
  needed(tokens: number): number {
    return Math.ceil(tokens / this.size)
  }

  /** So many pages, or undefined when there are not enough: nothing is taken then. */
  take(pages: number): number[] | undefined {
    if (pages > this.#free.length) return undefined
    const taken = this.#free.splice(this.#free.length - pages, pages)
    for (const page of taken) this.#taken[page] = 1
    return taken
  }

  /** Gives pages back. A page that is not taken is a bug of the caller and is refused before anything changes. */
  release(pages: readonly number[]): void {
    for (const page of pages) if (this.#taken[page] !== 1) throw new Error(`page ${page} is released but not taken`)
    for (const page of pages) {
      this.#taken[page] = 0
      this.#free.push(page)
    }
  }
}
