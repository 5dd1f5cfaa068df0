import { describe, expect, test } from '@jest/globals'
import { noPage, Pages } from '../../lib/pages.ts'

/** Takes pages for these tokens, publishes them and gives those to use from now on. */
function fill(pages: Pages, tokens: readonly number[], taken = pages.take(Math.floor(tokens.length / pages.size))!): number[] {
  const used: number[] = []
  for (const [i, page] of taken.entries()) used.push(pages.publish(page, used.at(-1) ?? noPage, tokens, i * pages.size))
  return used
}

describe('taking and releasing', () => {
  test('gives each page once, and nothing when there are not enough', () => {
    const pages = new Pages(5, 4)
    const [two, three] = [pages.take(2)!, pages.take(3)!]
    expect([...two, ...three].sort()).toEqual([0, 1, 2, 3, 4])
    expect([pages.available, pages.take(1), pages.take(0)]).toEqual([0, undefined, []])
    pages.release(two)
    expect([pages.available, pages.take(3), pages.available]).toEqual([2, undefined, 2])
    pages.release([])
    expect(pages.take(2)!.sort()).toEqual([...two].sort())
  })

  test('a page is free after its last user', () => {
    const pages = new Pages(2, 4)
    const taken = pages.take(1)!
    expect(pages.isShared(taken[0]!)).toBe(false)
    pages.retain(taken)
    expect(pages.isShared(taken[0]!)).toBe(true)
    pages.release(taken)
    expect([pages.isShared(taken[0]!), pages.available]).toEqual([false, 1])
    pages.release(taken)
    expect([pages.isShared(taken[0]!), pages.available]).toEqual([false, 2])
  })

  test.each([
    ['one that is free', (_: number[]) => [7]],
    ['one beyond the last', (_: number[]) => [8]],
    ['a negative one', (_: number[]) => [-1]],
    ['a fraction', (_: number[]) => [0.5]],
    ['a free one before others', ([a, b]: number[]) => [7, a!, b!]],
    ['a free one after others', ([a, b]: number[]) => [a!, b!, 7]],
    ['one twice', ([a, b, c]: number[]) => [c!, a!, b!, c!]],
  ])('refuses to release %s, and changes nothing', (_, wrong) => {
    const pages = new Pages(8, 2)
    const known = fill(pages, [1, 2, 3, 4])
    const taken = [...known, ...pages.take(1)!]
    const left = pages.take(4)!
    pages.release(left.filter(page => page === 7))
    const { available } = pages
    const page = wrong(taken).find(one => !taken.includes(one)) ?? taken[2]
    expect(() => pages.release(wrong(taken))).toThrow(`page ${page} is released but nobody uses it`)
    expect([pages.available, pages.idle, taken.some(one => pages.isShared(one))]).toEqual([available, 0, false])
    const others = pages.take(available)!
    expect(new Set([...taken, ...others]).size).toBe(3 + available)
    pages.release(taken) // still theirs to give back
    expect([pages.available, pages.idle, pages.find([1, 2, 3, 4, 5])]).toEqual([3, 2, known])
  })

  test('refuses to share what nobody uses', () => {
    const pages = new Pages(4, 1)
    const known = fill(pages, [5])
    pages.release(known)
    for (const page of [known[0]!, 3, 4, -1, 0.5]) expect(() => pages.retain([page])).toThrow(`page ${page} is shared but nobody`)
    expect([pages.available, pages.idle]).toEqual([4, 1])
  })

  test.each([
    [0, 16, 0],
    [1, 16, 1],
    [16, 16, 1],
    [17, 16, 2],
    [2 ** 31, 16, 2 ** 27],
  ])('%i tokens in pages of %i need %i', (tokens, size, expected) => {
    expect(new Pages(1, size).needed(tokens)).toBe(expected)
  })
})

describe('what is in the pages', () => {
  test('the longest known beginning is found, in whole pages, in use or not', () => {
    const pages = new Pages(8, 2)
    const used = fill(pages, [1, 2, 3, 4, 5, 6])
    expect(pages.find([1, 2, 3, 4, 5])).toEqual(used.slice(0, 2))
    expect(used.map(page => pages.isShared(page))).toEqual([true, true, false])
    pages.release(used.slice(0, 2))
    pages.release(used)
    expect([pages.idle, pages.available]).toEqual([3, 8])
    expect(pages.find([1, 2, 3, 4, 5, 6, 7, 8])).toEqual(used)
    expect([pages.idle, pages.available]).toEqual([0, 5])
    for (const none of [[], [1], [2, 1], [3, 4, 1, 2], [1, 3]]) expect(pages.find(none)).toEqual([])
  })

  test('equal tokens after different ones are different', () => {
    const pages = new Pages(8, 1)
    const [a, b] = [fill(pages, [1, 3, 3]), fill(pages, [2, 3, 3])]
    expect(new Set([...a, ...b]).size).toBe(6)
    expect([pages.find([1, 3, 3]), pages.find([2, 3, 3]), pages.find([3])]).toEqual([a, b, []])
  })

  test('nor are tokens mistaken that look alike when they are joined', () => {
    const pages = new Pages(8, 2)
    expect(fill(pages, [1, 11])).not.toEqual(fill(pages, [11, 1]))
  })

  test('what comes after a forgotten page is not found after the next one in it', () => {
    const pages = new Pages(2, 1)
    const [first, second] = fill(pages, [1, 2])
    pages.release([first!])
    expect(pages.take(1)).toEqual([first])
    expect(fill(pages, [3], [first!])).toEqual([first])
    expect([pages.find([3, 2]), pages.find([1, 2]), pages.isShared(second!)]).toEqual([[first], [], false])
  })

  test('who publishes what is known goes on with the known page', () => {
    const pages = new Pages(8, 2)
    const first = fill(pages, [1, 2, 3, 4])
    const own = pages.take(2)!
    expect(pages.available).toBe(4)
    expect(fill(pages, [1, 2, 3, 4], own)).toEqual(first)
    expect([pages.available, pages.idle, first.every(page => pages.isShared(page))]).toEqual([6, 0, true])
    expect(fill(pages, [1, 2, 3, 4], first)).toEqual(first) // once more: nothing happens
    pages.release(first)
    pages.release(first)
    expect([pages.available, pages.idle]).toEqual([8, 2])
  })

  test('a known page that nobody uses is taken into use by who publishes the same', () => {
    const pages = new Pages(2, 1)
    const first = fill(pages, [1])
    pages.release(first)
    const own = pages.take(1)!
    expect([pages.idle, fill(pages, [1], own), pages.idle, pages.available]).toEqual([1, first, 0, 1])
    expect(pages.take(1)).toEqual(own)
    expect(pages.take(1)).toBeUndefined()
  })

  test('what was released first is forgotten first, a chain from its end, and only when nothing is free', () => {
    const pages = new Pages(6, 1)
    const [a, b] = [fill(pages, [1, 1]), fill(pages, [2, 2])]
    pages.release(a)
    pages.release(b)
    expect(pages.find([1])).toEqual([a[0]]) // wanted again: later now
    pages.release([a[0]!])
    expect(new Set(pages.take(2)!).size).toBe(2)
    expect(pages.idle).toBe(4)
    expect([pages.take(1), pages.take(1)]).toEqual([[a[1]], [b[1]]])
    const found = pages.find([2, 2])
    expect(found).toEqual([b[0]])
    expect(pages.take(2)).toBeUndefined() // b[0] is in use
    expect([pages.take(1), pages.find([1]), pages.available]).toEqual([[a[0]], [], 0])
  })

  test('clear forgets what nobody uses, forget what is in one page', () => {
    const pages = new Pages(6, 1)
    const [used, idle] = [fill(pages, [1, 2]), fill(pages, [3, 4])]
    pages.release(idle)
    pages.clear()
    expect([pages.idle, pages.available, pages.find([3]), pages.find([1, 2])]).toEqual([0, 4, [], used])
    expect(pages.take(4)!.every(page => !used.includes(page))).toBe(true)
    expect([pages.forget(used[1]!), pages.find([1, 2])]).toEqual([undefined, [used[0]]])
  })
})

/** expect is slow, and this is asked a thousand million times. */
function hold(condition: boolean, what: string): void {
  if (!condition) throw new Error(`does not hold: ${what}`)
}

/** Numbers below n, by xorshift. */
function randoms(seed: number): (n: number) => number {
  let state = (seed + 1) * 0x9e3779b1
  return n => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return ((state >>> 0) % 0x3fffffff) % n
  }
}

/** Prompts that begin alike, from few tokens; every beginning in whole pages has a number, equal ones the same. */
function prompts(random: (n: number) => number, size: number): { tokens: number[]; contents: number[] }[] {
  const alphabet = [1, 11, 111].slice(0, 1 + random(3))
  const numbers = new Map<string, number>()
  const all: { tokens: number[]; contents: number[] }[] = []
  for (let p = 0; p < 40; p++) {
    const from = all[random(p + 1)]?.tokens ?? []
    const tokens = from.slice(0, random(from.length + 1))
    for (let i = random(6 * size); i > 0 && tokens.length < 16 * size; i--) tokens.push(alphabet[random(alphabet.length)]!)
    const contents: number[] = []
    for (let at = size; at <= tokens.length; at += size) {
      const beginning = tokens.slice(0, at).join()
      if (!numbers.has(beginning)) numbers.set(beginning, numbers.size)
      contents.push(numbers.get(beginning)!)
    }
    all.push({ tokens, contents })
  }
  return all
}

/** One who uses pages: the first #published of them are known to hold the beginning of the prompt. */
interface User {
  prompt: { tokens: number[]; contents: number[] }
  pages: number[]
  published: number
}

const unknown = -1

/** Random operations on one pool; after each, all that can be asked is compared with arrays in which it is obvious. */
class Trial {
  readonly #random: (n: number) => number
  readonly #pages: Pages
  readonly #prompts: ReturnType<typeof prompts>
  #users: User[] = []
  /** By page: users, content, and when it was released last. */
  readonly #used: Int32Array
  readonly #content: Int32Array
  readonly #released: Float64Array
  #now = 0
  /** Pages that nobody uses, and those of them that are known, when this was checked last. */
  #count = { unused: 0, idle: 0 }
  /** By content: the page in which it can be found. */
  readonly #where: Int32Array
  readonly seen = { found: 0, evicted: 0, swapped: 0, refused: 0, thrown: 0 }

  constructor(seed: number) {
    this.#random = randoms(seed)
    const count = 1 + this.#random(64)
    const size = 1 + this.#random(4)
    this.#pages = new Pages(count, size)
    this.#prompts = prompts(this.#random, size)
    this.#used = new Int32Array(count)
    this.#content = new Int32Array(count).fill(unknown)
    this.#released = new Float64Array(count)
    this.#where = new Int32Array(40 * 16).fill(unknown)
    this.#check()
  }

  step(): void {
    const random = this.#random
    const kind = random(1000)
    const user = this.#users[random(this.#users.length)]
    const whole = user?.pages.length ?? 0
    if (kind < 2) this.#clear()
    else if (kind < 6) this.#releaseWrongly(user)
    else if (!user || (kind < 250 && this.#users.length < 16)) this.#find()
    else if (kind < 270) this.#take(user, random(this.#pages.count + 2))
    else if (kind < 300) this.#retain(user)
    else if (kind < 400) this.#release(user, random(4) > 0 ? whole : Math.min(whole, 1))
    else if (user.published < Math.min(whole, user.prompt.contents.length)) this.#publish(user)
    else if (whole > user.prompt.contents.length || !this.#take(user, 1 + random(3))) this.#release(user, whole)
    this.#check()
  }

  end(): void {
    for (const user of [...this.#users]) this.#release(user, user.pages.length)
    this.#check()
    hold(this.#pages.available === this.#pages.count, 'no page is lost')
    this.#clear()
    this.#check()
    hold(this.#pages.take(this.#pages.count)?.length === this.#pages.count, 'all can be taken')
  }

  #check(): void {
    const pages = this.#pages
    let [unused, idle] = [0, 0]
    for (let page = 0; page < pages.count; page++) {
      const users = this.#used[page]!
      hold(pages.isShared(page) === users > 1, 'shared is what has users')
      if (users > 0) continue
      unused++
      if (this.#content[page] !== unknown) idle++
    }
    hold(pages.available === unused, 'available is what nobody uses')
    hold(pages.idle === idle, 'idle is what nobody uses and is known')
    this.#count = { unused, idle }
  }

  #find(): void {
    const prompt = this.#prompts[this.#random(this.#prompts.length)]!
    const found = this.#pages.find(prompt.tokens)
    let i = 0
    for (; i < prompt.contents.length; i++) {
      const page = this.#where[prompt.contents[i]!]!
      if (page === unknown) break
      hold(found[i] === page, 'what is known is found')
      this.#used[page]!++
    }
    hold(found.length === i, 'what is not known is not found')
    this.#users.push({ prompt, pages: found, published: i })
    this.seen.found += i
  }

  #take(user: User, n: number): boolean {
    const { unused, idle } = this.#count
    const taken = this.#pages.take(n)
    hold((taken === undefined) === n > unused, 'taken if there are enough')
    this.seen.refused += taken ? 0 : 1
    if (!taken) return false
    hold(taken.length === n, 'as many as asked for')
    let [evicted, latest] = [0, 0]
    for (const page of taken) {
      hold(this.#used[page] === 0, 'nobody uses what is taken')
      this.#used[page] = 1
      const content = this.#content[page]!
      if (content === unknown) continue
      evicted++
      latest = Math.max(latest, this.#released[page]!)
      this.#where[content] = this.#content[page] = unknown
    }
    hold(evicted === Math.max(0, n - (unused - idle)), 'nothing is forgotten while pages are free')
    for (let page = 0; page < this.#used.length && evicted > 0; page++) {
      const isIdle = this.#used[page] === 0 && this.#content[page] !== unknown
      hold(!isIdle || this.#released[page]! > latest, 'the one released first is forgotten first')
    }
    user.pages.push(...taken)
    this.seen.evicted += evicted
    return true
  }

  /** As many as are published, and one more, as a sequence does that shares a prompt. */
  #retain({ prompt, pages, published }: User): void {
    const shared = pages.slice(0, this.#random(published + 2))
    this.#pages.retain(shared)
    for (const page of shared) this.#used[page]!++
    this.#users.push({ prompt, pages: shared, published: Math.min(published, shared.length) })
  }

  #publish(user: User): void {
    const { prompt, pages, published } = user
    const [own, content] = [pages[published]!, prompt.contents[published]!]
    const before = published === 0 ? noPage : pages[published - 1]!
    const page = this.#pages.publish(own, before, prompt.tokens, published * this.#pages.size)
    if (this.#where[content] === unknown) {
      hold(page === own, 'what is new stays in its page')
      this.#where[content] = own
      this.#content[own] = content
    } else {
      hold(page === this.#where[content], 'what is known is used from its page')
      this.#used[page]!++
      this.#unuse(own)
      if (page !== own) this.seen.swapped++
    }
    pages[published] = page
    user.published++
  }

  /** The last n; a user without pages goes. */
  #release(user: User, n: number): void {
    const released = user.pages.splice(user.pages.length - n)
    user.published = Math.min(user.published, user.pages.length)
    if (user.pages.length === 0) this.#users = this.#users.filter(other => other !== user)
    this.#pages.release(released)
    for (let i = released.length - 1; i >= 0; i--) this.#unuse(released[i]!)
  }

  #unuse(page: number): void {
    if (--this.#used[page]! === 0) this.#released[page] = ++this.#now
  }

  /** Pages in use, and after them one that is not, or is not any more. */
  #releaseWrongly(user: User | undefined): void {
    const page = this.#random(this.#pages.count)
    const wrong = [...new Array(this.#used[page]! + 1).fill(page), ...(user?.pages.filter(other => other !== page) ?? [])]
    let thrown = false
    try {
      this.#pages.release(wrong)
    } catch {
      thrown = true
    }
    hold(thrown, 'a page is released once by each who uses it')
    this.seen.thrown++
  }

  #clear(): void {
    this.#pages.clear()
    for (let page = 0; page < this.#used.length; page++) {
      if (this.#used[page]! > 0 || this.#content[page] === unknown) continue
      this.#where[this.#content[page]!] = this.#content[page] = unknown
    }
  }
}

test('10^7 random operations, each followed by a comparison with a model', () => {
  const [trials, steps] = [500, 20_000]
  const seen: Record<string, number> = {}
  for (let seed = 0; seed < trials; seed++) {
    const trial = new Trial(seed)
    let step = 0
    try {
      for (; step < steps; step++) trial.step()
      trial.end()
    } catch (error) {
      throw new Error(`new Trial(${seed}), step ${step}: ${(error as Error).message}`, { cause: error })
    }
    for (const [what, times] of Object.entries(trial.seen)) seen[what] = (seen[what] ?? 0) + times
  }
  // That all of it happened, and often.
  const often = Object.fromEntries(Object.entries(seen).map(([what, times]) => [what, times > 20_000]))
  expect(often).toEqual({ found: true, evicted: true, swapped: true, refused: true, thrown: true })
})
