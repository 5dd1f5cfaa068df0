/** Byte pair encoding on token ids: the table of merges and the loop that applies them in time n log n. */

const { imul } = Math // in this module's scope: test runners make every use of a global slow

/** Token strings and their ids, looked up by content, also in two parts: a Map needs a new string for those. */
export class Vocabulary {
  /** By id; holes where the file has none. */
  readonly tokens: readonly (string | undefined)[]
  readonly #slots: Int32Array // id + 1, open addressing; 0: free
  readonly #hashes: Int32Array // by slot
  readonly #mask: number

  constructor(tokens: readonly (string | undefined)[]) {
    this.tokens = tokens
    const slots = tableSize(tokens.length)
    this.#mask = slots - 1
    this.#slots = new Int32Array(slots)
    this.#hashes = new Int32Array(slots)
    tokens.forEach((token, id) => {
      if (token === undefined) return
      const hash = fnv(token, FNV_BASIS)
      const slot = this.#slotOf(hash, token, '')
      this.#slots[slot] = id + 1
      this.#hashes[slot] = hash
    })
  }

  /** The id of a token, or of the token that `left` and `right` make together. */
  find(left: string, right = ''): number | undefined {
    const found = this.#slots[this.#slotOf(fnv(right, fnv(left, FNV_BASIS)), left, right)]!
    return found > 0 ? found - 1 : undefined
  }

  /** The slot that holds the token, or the free one where it belongs. */
  #slotOf(hash: number, left: string, right: string): number {
    let slot = (hash ^ (hash >>> 15)) & this.#mask
    for (; this.#slots[slot] !== 0; slot = (slot + 1) & this.#mask) {
      if (this.#hashes[slot] !== hash) continue
      const token = this.tokens[this.#slots[slot]! - 1]!
      if (token.length === left.length + right.length && token.startsWith(left) && token.endsWith(right)) break
    }
    return slot
  }
}

const FNV_BASIS = 0x811c9dc5 | 0

/** FNV-1a over UTF-16 units; going on from the hash of `a` with `b` gives that of `a + b`. */
function fnv(text: string, hash: number): number {
  for (let i = 0; i < text.length; i++) hash = imul(hash ^ text.charCodeAt(i), 0x01000193)
  return hash
}

const SLOT = 4 // left, right, rank + 1 (0: free), merged
const GONE = -1 // `next` of a position that was merged into the one before it

/** Which pairs of tokens become which token, and which pair goes first. */
export class Merges {
  readonly #table: Int32Array // [slots, SLOT], open addressing
  readonly #mask: number
  readonly #work = new Work(256) // for all pieces but the long ones

  /** Room for `count` merges. */
  constructor(count: number) {
    this.#mask = tableSize(count) - 1
    this.#table = new Int32Array((this.#mask + 1) * SLOT)
  }

  /** The pair becomes `merged`; a lower rank goes first. Of two entries for one pair the later counts. */
  add(left: number, right: number, rank: number, merged: number): void {
    const at = this.#find(left, right)
    this.#table[at] = left
    this.#table[at + 1] = right
    this.#table[at + 2] = rank + 1
    this.#table[at + 3] = merged
  }

  #find(left: number, right: number): number {
    const hash = imul(left, 0x9e3779b1) ^ imul(right, 0x85ebca6b)
    const table = this.#table
    let at = ((hash ^ (hash >>> 15)) & this.#mask) * SLOT
    while (table[at + 2] !== 0 && (table[at] !== left || table[at + 1] !== right)) {
      at = (at + SLOT) & (this.#mask * SLOT + SLOT - 1)
    }
    return at
  }

  /**
   * Merges the first `count` ids in place and returns how many are left. The pair with the lowest rank goes first, of
   * equal ones the leftmost; each merge offers its two new neighbours, so n ids take n log n steps, whatever they are.
   */
  apply(ids: Int32Array, count: number): number {
    const work = count <= this.#work.next.length ? this.#work : new Work(count)
    const { next, previous, heap } = work
    const offer = (at: number, after: number) => {
      const found = this.#find(ids[at]!, ids[after]!)
      const rank = this.#table[found + 2]!
      if (rank > 0) heap.push(rank, at)
    }
    for (let at = 0; at < count; at++) {
      previous[at] = at - 1
      next[at] = at + 1
    }
    for (let at = 1; at < count; at++) offer(at - 1, at)

    for (let lowest = heap.pop(); lowest >= 0; lowest = heap.pop()) {
      const at = lowest % POSITIONS
      const after = next[at]!
      if (after === GONE || after >= count) continue
      const found = this.#find(ids[at]!, ids[after]!)
      // One of the two has been merged since this pair was offered: what they are now has an entry of its own.
      if (this.#table[found + 2]! * POSITIONS + at !== lowest) continue
      ids[at] = this.#table[found + 3]!
      const beyond = next[after]!
      next[at] = beyond
      next[after] = GONE
      if (beyond < count) {
        previous[beyond] = at
        offer(at, beyond)
      }
      if (previous[at]! >= 0) offer(previous[at]!, at)
    }

    let kept = 0
    for (let at = 0; at < count; at = next[at]!) ids[kept++] = ids[at]!
    return kept
  }
}

const POSITIONS = 2 ** 31

/** A linked list over the positions of a piece and the pairs waiting to be merged. */
class Work {
  readonly next: Int32Array
  readonly previous: Int32Array
  readonly heap: Heap

  constructor(count: number) {
    this.next = new Int32Array(count)
    this.previous = new Int32Array(count)
    this.heap = new Heap(2 * count) // at most count - 1 to begin with, and a merge takes one and offers two
  }
}

/** A binary min-heap of (rank, position), each pair kept as one number: rank * 2^31 + position. */
class Heap {
  readonly #keys: Float64Array
  #size = 0

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity)
  }

  push(rank: number, position: number): void {
    const keys = this.#keys
    const key = rank * POSITIONS + position
    let at = this.#size++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (keys[parent]! <= key) break
      keys[at] = keys[parent]!
      at = parent
    }
    keys[at] = key
  }

  /** The lowest; -1 when there is none. */
  pop(): number {
    if (this.#size === 0) return -1
    const keys = this.#keys
    const lowest = keys[0]!
    const last = keys[--this.#size]!
    let at = 0
    for (let child = 1; child < this.#size; child = 2 * at + 1) {
      if (child + 1 < this.#size && keys[child + 1]! < keys[child]!) child++
      if (keys[child]! >= last) break
      keys[at] = keys[child]!
      at = child
    }
    keys[at] = last
    return lowest
  }
}

/** A power of two that leaves the table at most two thirds full. */
const tableSize = (count: number) => 2 ** Math.ceil(Math.log2(1.5 * count + 2))
