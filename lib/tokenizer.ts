/** Text to tokens and back: byte-level BPE as Llama 3 uses it. */

import { join } from 'node:path'
import { InputError } from './errors.ts'
import { readJson } from './json.ts'
import { show } from './sampling.ts'
import type { Merges, Vocabulary } from './tokenizer_bpe.ts'
import { type AddedToken, byteLevel, readTokenizer, type TokenizerFile } from './tokenizer_file.ts'
import { pieceEnd } from './tokenizer_split.ts'

/** Whether the text of special tokens counts as those tokens (encode), or is part of the text (decode). */
export interface TokenizerOptions {
  special?: boolean
}

/** A model's tokenizer. Nothing in it changes after loading; one serves any number of generations. */
export class Tokenizer {
  /** Ids of the special tokens (control tokens such as <|eot_id|>) by their text. */
  readonly specialTokens: ReadonlyMap<string, number>
  /** The token a prompt begins with, if the files name one. `encode` never adds it. */
  readonly bos?: number
  /** The highest id plus one, added tokens included. A model's logits may be wider (padding), never narrower. */
  readonly size: number

  readonly #vocabulary: Vocabulary
  readonly #merges: Merges
  readonly #byteIds: readonly number[]
  readonly #ignoreMerges: boolean
  readonly #digits: number
  readonly #longest: number // bytes of the longest token
  readonly #added: ReadonlyMap<string, AddedToken>
  readonly #addedById: ReadonlyMap<number, AddedToken>
  readonly #addedPattern: RegExp | undefined
  readonly #plainPattern: RegExp | undefined // added tokens that are not special
  readonly #specialPattern: RegExp | undefined
  readonly #pieces = new PieceCache()
  readonly #bytes: Uint8Array[] = [] // by id, made when first asked for

  private constructor(file: TokenizerFile, bos: string) {
    const { added, vocabulary } = file
    const special = added.filter(token => token.special)
    this.#vocabulary = vocabulary
    this.#merges = file.merges
    this.#byteIds = file.byteIds
    this.#ignoreMerges = file.ignoreMerges
    this.#digits = file.digits
    this.#longest = vocabulary.tokens.reduce((longest, token) => Math.max(longest, token?.length ?? 0), 0)
    this.#added = new Map(added.map(token => [token.content, token]))
    this.#addedById = new Map(added.map(token => [token.id, token]))
    this.#addedPattern = anyOf(added)
    this.#plainPattern = anyOf(added.filter(token => !token.special))
    this.#specialPattern = anyOf(special)
    this.specialTokens = new Map(special.map(token => [token.content, token.id]))
    this.size = added.reduce((size, token) => Math.max(size, token.id + 1), vocabulary.tokens.length)
    const id = this.specialTokens.get(bos)
    if (id !== undefined) this.bos = id
  }

  /**
   * Reads tokenizer.json, and tokenizer_config.json where there is one, from a model's folder; undefined when the folder
   * has no tokenizer.json.
   * @throws ModelError ERR_TOKENIZER_UNREADABLE, ERR_TOKENIZER_JSON: not a file or not JSON; ERR_TOKENIZER_FIELD: a field is broken;
   * ERR_TOKENIZER_UNSUPPORTED: a kind of tokenizer other than Llama 3's.
   */
  static async load(folder: string): Promise<Tokenizer | undefined> {
    const file = join(folder, 'tokenizer.json')
    const json = await readJson(file, jsonOptions)
    if (json === undefined) return undefined
    return Tokenizer.parse(json, file, await readJson(join(folder, 'tokenizer_config.json'), jsonOptions))
  }

  /**
   * From the parsed tokenizer.json, and tokenizer_config.json for the name of the first token; `file` is for messages.
   * @throws ModelError ERR_TOKENIZER_FIELD, ERR_TOKENIZER_UNSUPPORTED, as `load`.
   */
  static parse(json: unknown, file: string, config?: unknown): Tokenizer {
    return new Tokenizer(readTokenizer(json, file), tokenText(config, 'bos_token') ?? '<|begin_of_text|>')
  }

  /**
   * The tokens of a text. The text of a special token is ordinary text, unless `special` asks for the token itself:
   * leave that off for anything a user wrote. Half a surrogate pair counts as U+FFFD.
   * @throws InputError ERR_ARGUMENT: not a string.
   */
  encode(text: string, options: TokenizerOptions = {}): number[] {
    const { special = false } = options ?? {}
    if (typeof text !== 'string') throw new InputError('ERR_ARGUMENT', `encode takes a string, found ${typeof text}`)
    const tokens: number[] = []
    for (const part of this.#cut(text, special ? this.#addedPattern : this.#plainPattern)) {
      if (typeof part === 'number') tokens.push(part)
      else this.#encodeText(part, tokens)
    }
    return tokens
  }

  /** The text, cut at its special tokens: their ids, and the text between them. */
  split(text: string): (string | number)[] {
    return [...this.#cut(text, this.#specialPattern)]
  }

  /**
   * The text of tokens. Special tokens are left out unless `special` asks for them, ids without a token always are. Bytes
   * that are not UTF-8 become U+FFFD; nothing else is changed, spaces before punctuation and a leading U+FEFF stay.
   * @throws InputError ERR_ARGUMENT: not an array of whole numbers from 0 on.
   */
  decode(tokens: readonly number[], { special = false }: TokenizerOptions = {}): string {
    if (!Array.isArray(tokens)) throw new InputError('ERR_ARGUMENT', `decode takes an array of token ids, found ${show(tokens)}`)
    for (const id of tokens) checkId(id)
    const parts = tokens.filter(id => special || !this.isSpecial(id)).map(id => this.#bytesOf(id))
    return Buffer.concat(parts).toString('utf8')
  }

  /** The id of a token by its name in tokenizer.json: a special token's text, or bytes in the byte-level alphabet. */
  idOf(token: string): number | undefined {
    return this.#added.get(token)?.id ?? this.#vocabulary.find(token)
  }

  /** Whether the id is a special token's. */
  isSpecial(id: number): boolean {
    return this.#addedById.get(id)?.special === true
  }

  /**
   * The bytes a token stands for; none for an id without a token, such as the padding at the end of some models.
   * @throws InputError ERR_ARGUMENT: not a whole number from 0 on.
   */
  bytes(id: number): Uint8Array {
    checkId(id)
    return Uint8Array.from(this.#bytesOf(id))
  }

  #bytesOf(id: number): Uint8Array {
    if (id >= this.size) return nothing // not kept: any number may come here
    this.#bytes[id] ??= this.#spell(id)
    return this.#bytes[id]!
  }

  #spell(id: number): Uint8Array {
    const added = this.#addedById.get(id)
    const token = added?.content ?? this.#vocabulary.tokens[id] ?? ''
    const bytes = Array.from(token, char => byteOf.get(char))
    // As in the reference, a token outside of the byte-level alphabet stands for its own text.
    if (added || bytes.includes(undefined)) return Buffer.from(token)
    return Uint8Array.from(bytes as number[])
  }

  *#cut(text: string, pattern: RegExp | undefined): Generator<string | number> {
    let at = 0
    if (pattern) {
      for (const match of text.matchAll(pattern)) {
        if (match.index > at) yield text.slice(at, match.index)
        yield this.#added.get(match[0])!.id
        at = match.index + match[0].length
      }
    }
    if (at < text.length) yield text.slice(at)
  }

  #encodeText(text: string, tokens: number[]): void {
    for (let at = 0, end = 0; at < text.length; at = end) {
      end = pieceEnd(text, at, this.#digits)
      const piece = text.slice(at, end)
      const known = this.#pieces.get(piece)
      for (const id of known ?? this.#encodePiece(piece)) tokens.push(id)
    }
  }

  #encodePiece(piece: string): readonly number[] {
    const bytes = Buffer.from(piece) // a lone surrogate becomes the bytes of U+FFFD
    const tokens = this.#wholePiece(bytes) ?? this.#mergePiece(bytes)
    // Decoded again to get a string of its own: a slice would keep the whole text alive for as long as it is cached.
    if (piece.length <= PieceCache.longest) this.#pieces.set(bytes.toString(), tokens)
    return tokens
  }

  #wholePiece(bytes: Uint8Array): number[] | undefined {
    if (!this.#ignoreMerges || bytes.length > this.#longest) return undefined
    let token = ''
    for (const byte of bytes) token += byteLevel[byte]
    const id = this.#vocabulary.find(token)
    return id === undefined ? undefined : [id]
  }

  #mergePiece(bytes: Uint8Array): number[] {
    const ids = Int32Array.from(bytes, byte => this.#byteIds[byte]!)
    return Array.from(ids.subarray(0, this.#merges.apply(ids, ids.length)))
  }
}

const nothing = new Uint8Array(0)

function checkId(id: unknown): void {
  if (Number.isInteger(id) && (id as number) >= 0) return
  throw new InputError('ERR_ARGUMENT', `a token id is ${show(id)}, expected a whole number from 0 on`)
}

/** The text of bos_token or eos_token in tokenizer_config.json: a string, or an object with `content`. */
export function tokenText(config: unknown, name: string): string | undefined {
  const value = (config as Record<string, unknown> | undefined)?.[name]
  const text = (value as { content?: unknown } | undefined)?.content ?? value
  return typeof text === 'string' ? text : undefined
}

const jsonOptions = { prefix: 'ERR_TOKENIZER', limit: 2 ** 27 } // Llama 3's tokenizer.json has 9 MB

const byteOf: ReadonlyMap<string, number> = new Map(byteLevel.map((char, byte) => [char, byte]))

/** Finds the leftmost added token, and the longest of those that begin there. */
function anyOf(added: readonly AddedToken[]): RegExp | undefined {
  if (added.length === 0) return undefined
  const longestFirst = added.map(token => token.content).sort((a, b) => b.length - a.length)
  return new RegExp(longestFirst.map(content => content.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')).join('|'), 'g')
}

/** Tokens of the pieces seen lately, in two generations: when the young one is full, the old one is forgotten. */
class PieceCache {
  /** Longer pieces, in UTF-16 units, are not kept: a word is short, and memory stays bounded whatever users send. */
  static readonly longest = 48
  static readonly #limit = 32768
  #young = new Map<string, readonly number[]>()
  #old = new Map<string, readonly number[]>()

  get(piece: string): readonly number[] | undefined {
    if (piece.length > PieceCache.longest) return undefined
    const known = this.#young.get(piece)
    if (known) return known
    const old = this.#old.get(piece)
    if (old) this.set(piece, old)
    return old
  }

  set(piece: string, tokens: readonly number[]): void {
    if (this.#young.size >= PieceCache.#limit) {
      this.#old = this.#young
      this.#young = new Map()
    }
    this.#young.set(piece, tokens)
  }
}
