/** Sequences in their order: lower first, of equals the one that arrived first. */
import type { Sequence } from './sequence.ts'

export class Line {
  readonly #all: Sequence[] = []

  get size(): number {
    return this.#all.length
  }

  get last(): Sequence | undefined {
    return this.#all.at(-1)
  }

  at(i: number): Sequence | undefined {
    return this.#all[i]
  }

  add(sequence: Sequence): void {
    this.#all.splice(this.#place(sequence), 0, sequence)
  }

  /** Whether it was there. */
  remove(sequence: Sequence): boolean {
    const place = this.#place(sequence)
    if (this.#all[place] !== sequence) return false
    this.#all.splice(place, 1)
    return true
  }

  /** Where it is, or would be. */
  #place(sequence: Sequence): number {
    let low = 0
    let high = this.#all.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (before(this.#all[middle]!, sequence)) low = middle + 1
      else high = middle
    }
    return low
  }
}

export const before = (a: Sequence, b: Sequence): boolean => a.order < b.order || (a.order === b.order && a.arrival < b.arrival)
