/** The pages of the key/value cache: who has which. Pure bookkeeping; the bytes are the device's. */

/** Hands out page numbers 0 ... count - 1. Every page is free or in one sequence. */
export class Pages {
  /** Pages in all. */
  readonly count: number
  /** Tokens a page holds. */
  readonly size: number
  /** A stack: the first #left of these are the free pages. */
  readonly #free: Int32Array
  #left: number
  readonly #taken: Uint8Array

  constructor(count: number, size: number) {
    this.count = count
    this.size = size
    this.#free = new Int32Array(count).map((_, i) => count - 1 - i)
    this.#left = count
    this.#taken = new Uint8Array(count)
  }

  /** Pages free now. */
  get free(): number {
    return this.#left
  }

  /** Pages that this many tokens need. */
  needed(tokens: number): number {
    return Math.ceil(tokens / this.size)
  }

  /** So many pages, or undefined when there are not enough: nothing is taken then. */
  take(pages: number): number[] | undefined {
    if (pages > this.#left) return undefined
    this.#left -= pages
    const taken = [...this.#free.subarray(this.#left, this.#left + pages)]
    for (const page of taken) this.#taken[page] = 1
    return taken
  }

  /** Gives pages back. A page that is not taken, or comes twice, is a bug of the caller: nothing changes then. */
  release(pages: readonly number[]): void {
    for (const [i, page] of pages.entries()) {
      if (this.#taken[page] !== 1) {
        for (const before of pages.slice(0, i)) this.#taken[before] = 1
        throw new Error(`page ${page} is released but not taken`)
      }
      this.#taken[page] = 0
    }
    this.#free.set(pages, this.#left)
    this.#left += pages.length
  }
}
