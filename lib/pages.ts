/**
 * The pages of the key/value cache: who has which, and what is in them. Pure bookkeeping; the bytes are the device's.
 *
 * A page is free, in use by one sequence or more, or idle: nobody uses it, but its content is known, and may be wanted
 * again. A full page is known by its chain: its own tokens after the chain of the page before. Equal chains have equal
 * bits in the cache, so a sequence may begin with the pages of another.
 */

/** What is before the first page of a chain. */
export const noPage = -1
const noChain = 0

/** What was known of some tokens when they were looked up last: pages, and the chain that ends with each. */
export interface Found {
  readonly pages: number[]
  readonly chains: number[]
}

export class Pages {
  /** Pages in all. */
  readonly count: number
  /** Tokens a page holds. */
  readonly size: number
  /** A stack: the first #left of these are free. */
  readonly #free: Int32Array
  #left: number
  /** Sequences that use a page. */
  readonly #users: Int32Array
  /** Pages that nobody uses and whose content is known, the one to give up first at the front. */
  readonly #idle = new Set<number>()
  /** Chain before a page and its tokens -> the page. */
  readonly #known = new Map<string, number>()
  /** By page: the key above, and the number of the chain that ends with it; chain numbers are never used again. */
  readonly #keys: (string | undefined)[]
  readonly #chains: Float64Array
  #lastChain = noChain

  constructor(count: number, size: number) {
    this.count = count
    this.size = size
    this.#free = new Int32Array(count).map((_, i) => count - 1 - i)
    this.#left = count
    this.#users = new Int32Array(count)
    this.#keys = new Array(count).fill(undefined)
    this.#chains = new Float64Array(count)
  }

  /** Pages that take() can give: free or idle. */
  get available(): number {
    return this.#left + this.#idle.size
  }

  /** Pages nobody uses, of which the content is kept. */
  get idle(): number {
    return this.#idle.size
  }

  /** Pages that this many tokens need. */
  needed(tokens: number): number {
    return Math.ceil(tokens / this.size)
  }

  /** How many sequences use a page. */
  users(page: number): number {
    return this.#users[page]!
  }

  /** Whether more than one sequence uses a page: then it must not be written. */
  isShared(page: number): boolean {
    return this.#users[page]! > 1
  }

  /** So many pages of unknown content, or undefined when there are not enough: nothing is taken then. */
  take(pages: number): number[] | undefined {
    if (pages > this.available) return undefined
    const taken: number[] = []
    for (const page of this.#idle) {
      if (this.#left + taken.length >= pages) break
      taken.push(page)
    }
    for (const page of taken) {
      this.#idle.delete(page)
      this.forget(page)
    }
    while (taken.length < pages) taken.push(this.#free[--this.#left]!)
    for (const page of taken) this.#users[page] = 1
    return taken
  }

  /** One user more for each, in use or idle. A free page is a bug of the caller. */
  retain(pages: readonly number[]): void {
    for (const page of pages) {
      if (!(this.#users[page]! > 0) && this.#keys[page] === undefined) throw new Error(`page ${page} is shared but it is free`)
      this.#use(page)
    }
  }

  /**
   * One user less for each; last pages first, so that a chain is forgotten from its end. A page that nobody uses is a
   * bug of the caller: nothing changes then.
   */
  release(pages: readonly number[]): void {
    for (let i = pages.length - 1; i >= 0; i--) {
      const page = pages[i]!
      if (!(this.#users[page]! > 0)) {
        for (const after of pages.slice(i + 1)) this.#reuse(after)
        throw new Error(`page ${page} is released but nobody uses it`)
      }
      if (--this.#users[page]! > 0) continue
      if (this.#keys[page] === undefined) this.#free[this.#left++] = page
      else this.#idle.add(page)
    }
  }

  /**
   * The pages of the longest known beginning of these tokens, in whole pages; they get no user. Of what it found before
   * only the numbers are compared, which is some 100 times as fast as to make keys of the tokens.
   */
  find(tokens: readonly number[], { pages, chains }: Found): readonly number[] {
    let n = 0
    while (n < pages.length && this.#keys[pages[n]!] !== undefined && this.#chains[pages[n]!] === chains[n]) n++
    pages.length = chains.length = n
    for (let at = n * this.size; at + this.size <= tokens.length; at += this.size) {
      const page = this.#known.get(this.#key(chains.at(-1) ?? noChain, tokens, at))
      if (page === undefined) break
      pages.push(page)
      chains.push(this.#chains[page]!)
    }
    return pages
  }

  /**
   * The page, in use, holds the tokens from `at` on, after what `before` ends (noPage: nothing). Gives the page to use
   * from now on: another one if their content was known already; then `page` has one user less and that one more.
   */
  publish(page: number, before: number, tokens: readonly number[], at: number): number {
    const key = this.#key(before === noPage ? noChain : this.#chains[before]!, tokens, at)
    const known = this.#known.get(key)
    if (known === undefined) {
      this.#known.set(key, page)
      this.#keys[page] = key
      this.#chains[page] = ++this.#lastChain
      return page
    }
    if (known !== page) {
      this.#use(known)
      this.release([page])
    }
    return known
  }

  /** What is in a page changes: it is not found any more. */
  forget(page: number): void {
    const key = this.#keys[page]
    if (key === undefined) return
    this.#known.delete(key)
    this.#keys[page] = undefined
  }

  /** Forgets what is in every page that nobody uses. */
  clear(): void {
    const { available } = this
    this.release(this.take(available)!)
  }

  #key(chain: number, tokens: readonly number[], at: number): string {
    let key = `${chain}`
    for (let i = at; i < at + this.size; i++) key += `,${tokens[i]}`
    return key
  }

  #use(page: number): void {
    this.#idle.delete(page)
    this.#users[page]!++
  }

  /** Takes a release back. */
  #reuse(page: number): void {
    if (this.#users[page] === 0 && !this.#idle.delete(page)) this.#left-- // it was put on top of the stack
    this.#users[page]!++
  }
}
