/** Random operations on the pages and a model of them, in which everything is obvious; all follows from a seed. */
import { type Found, noPage, Pages } from '../../lib/pages.ts'
import { hold, type Random, randoms } from './shadow_engine.ts'

/** Every beginning in whole pages has a number, equal ones the same; found: what was known of it some time ago. */
interface Prompt {
  tokens: number[]
  contents: number[]
  found: Found
}

/** Prompts that begin alike, from few tokens. */
function prompts(random: Random, size: number): Prompt[] {
  const alphabet = [1, 11, 111].slice(0, 1 + random(3))
  const numbers = new Map<string, number>()
  const all: Prompt[] = []
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
    all.push({ tokens, contents, found: { pages: [], chains: [] } })
  }
  return all
}

/** One who uses pages: the first #published of them are known to hold the beginning of the prompt. */
interface User {
  prompt: Prompt
  pages: number[]
  published: number
}

const unknown = -1

/** Random operations on one pool; after each, all that can be asked is compared with arrays in which it is obvious. */
export class Trial {
  readonly #random: Random
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
    const found = [...this.#pages.find(prompt.tokens, prompt.found)]
    let i = 0
    for (; i < prompt.contents.length; i++) {
      const page = this.#where[prompt.contents[i]!]!
      if (page === unknown) break
      hold(found[i] === page, 'what is known is found')
    }
    hold(found.length === i, 'what is not known is not found')
    if (this.#random(2) === 0) return
    this.#pages.retain(found)
    for (const page of found) this.#used[page]!++
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
