/** Reads tokenizer.json and refuses what this package would not tokenize exactly as the reference does. */

import { ModelError } from './errors.ts'
import { Merges, Vocabulary } from './tokenizer_bpe.ts'
import { splitPatterns } from './tokenizer_split.ts'

/** A token that is found in the text itself, before the text is cut into pieces. */
export interface AddedToken {
  readonly id: number
  readonly content: string
  /** Control tokens, which ordinary text must never become. */
  readonly special: boolean
}

/** What tokenizer.json says, checked. */
export interface TokenizerFile {
  /** Tokens in the byte-level alphabet, without the added ones. */
  readonly vocabulary: Vocabulary
  readonly merges: Merges
  readonly added: readonly AddedToken[]
  /** Token id of each byte value. */
  readonly byteIds: readonly number[]
  /** A piece that is a token as a whole is not put together by merges. */
  readonly ignoreMerges: boolean
  /** Digits of a number that go into one piece. */
  readonly digits: number
}

type Fields = Record<string, unknown>

const supported =
  'supported is byte-level BPE as in Llama 3: model BPE, no normalizer, pre_tokenizer Split (with the regex of Llama 3) then ByteLevel, decoder ByteLevel'

/** Bytes 33-126, 161-172 and 174-255 stand for themselves; the others follow from U+0100, so that no token holds a blank. */
export const byteLevel: readonly string[] = (() => {
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
    return String.fromCharCode(printable ? byte : next++)
  })
})()

/**
 * Checks the parsed tokenizer.json; `file` is its name for messages.
 * @throws ModelError ERR_TOKENIZER_FIELD: a field is broken; ERR_TOKENIZER_UNSUPPORTED: another kind of tokenizer.
 */
export function readTokenizer(json: unknown, file: string): TokenizerFile {
  const broken = (field: string, expected: string, found: unknown) =>
    new ModelError('ERR_TOKENIZER_FIELD', `${file}: ${field} must be ${expected}, found ${show(found)}`)
  const unsupported = (field: string, found: unknown) =>
    new ModelError('ERR_TOKENIZER_UNSUPPORTED', `${file}: ${field} is ${show(found)}, which is not supported; ${supported}`)

  function fields(value: unknown, field: string): Fields {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw broken(field, 'an object', value)
    return value as Fields
  }
  function list(value: unknown, field: string): readonly unknown[] {
    if (!Array.isArray(value)) throw broken(field, 'an array', value)
    return value
  }
  function expect(object: Fields, path: string, wanted: Readonly<Record<string, readonly unknown[]>>): void {
    for (const [key, allowed] of Object.entries(wanted)) {
      if (!allowed.includes(object[key])) throw unsupported(`${path}.${key}`, object[key])
    }
  }

  function readDigits(value: unknown): number {
    const sequence = fields(value ?? {}, 'pre_tokenizer')
    if (sequence.type !== 'Sequence') throw unsupported('pre_tokenizer.type', sequence.type)
    const steps = list(sequence.pretokenizers, 'pre_tokenizer.pretokenizers').map((step, i) =>
      fields(step, `pre_tokenizer.pretokenizers[${i}]`),
    )
    const types = steps.map(step => step.type)
    if (types.join() !== 'Split,ByteLevel') throw unsupported('pre_tokenizer.pretokenizers', types)
    const [split, bytes] = steps as [Fields, Fields]
    // The pattern covers every character, so keeping what matches (Isolated) and keeping only that are the same.
    const [behavior, invert] = [split.behavior, split.invert ?? false]
    if (!(behavior === 'Isolated' && invert === false) && !(behavior === 'Removed' && invert === true)) {
      throw unsupported('pre_tokenizer.pretokenizers[0].behavior', `${behavior}, invert ${invert}`)
    }
    expect(bytes, 'pre_tokenizer.pretokenizers[1]', { add_prefix_space: [false], use_regex: [false] })
    const { Regex: regex } = fields(split.pattern, 'pre_tokenizer.pretokenizers[0].pattern')
    const digits = splitPatterns.get(regex as string)
    if (digits === undefined) throw unsupported('pre_tokenizer.pretokenizers[0].pattern', split.pattern)
    return digits
  }

  function readAdded(value: unknown): AddedToken[] {
    const ids = new Map<string, number>()
    return list(value ?? [], 'added_tokens').map((entry, i) => {
      const field = `added_tokens[${i}]`
      const token = fields(entry, field)
      const { id, content } = token
      if (!isTokenId(id)) throw broken(`${field}.id`, tokenId, id)
      if (typeof content !== 'string' || content === '' || ids.has(content)) {
        throw broken(`${field}.content`, 'a string, not empty and not used before', content)
      }
      const no = [undefined, false]
      expect(token, field, { single_word: no, lstrip: no, rstrip: no })
      ids.set(content, id)
      return { id, content, special: token.special === true }
    })
  }

  /** By id. Added tokens that the model also lists are left to `added`, or text could become a special one. */
  function readTokens(value: unknown, added: readonly AddedToken[]): (string | undefined)[] {
    const vocab = fields(value, 'model.vocab')
    const tokens: (string | undefined)[] = []
    for (const token of Object.keys(vocab)) {
      const id = vocab[token]
      if (!isTokenId(id)) throw broken(`model.vocab[${show(token)}]`, tokenId, id)
      while (tokens.length <= id) tokens.push(undefined)
      if (tokens[id] !== undefined)
        throw broken(`model.vocab[${show(token)}]`, `an id of its own (${show(tokens[id])} has it)`, id)
      tokens[id] = token
    }
    for (const { id, content, special } of added) {
      const known = Object.hasOwn(vocab, content) ? vocab[content] : undefined
      const taken = tokens[id]
      if ((known !== undefined && known !== id) || (taken !== undefined && taken !== content)) {
        throw broken('added_tokens', `consistent with model.vocab (${show(content)} is ${known}, ${id} is ${show(taken)})`, id)
      }
      if (special) tokens[id] = undefined
    }
    return tokens
  }

  function readMerges(value: unknown, vocabulary: Vocabulary): Merges {
    const pairs = list(value, 'model.merges')
    const merges = new Merges(pairs.length)
    pairs.forEach((pair, rank) => {
      const [left, right] = halves(pair)
      if (typeof left !== 'string' || typeof right !== 'string')
        throw broken(`model.merges[${rank}]`, '"a b" or ["a", "b"]', pair)
      const leftId = vocabulary.find(left)
      const rightId = vocabulary.find(right)
      const merged = vocabulary.find(left, right)
      if (leftId === undefined || rightId === undefined || merged === undefined) {
        throw broken(`model.merges[${rank}]`, 'two tokens of model.vocab that make a third', pair)
      }
      merges.add(leftId, rightId, rank, merged)
    })
    return merges
  }

  const root = fields(json, 'the file')
  const model = fields(root.model, 'model')
  const nothing = [undefined, null, '']
  expect(model, 'model', {
    type: ['BPE'],
    dropout: [undefined, null, 0],
    continuing_subword_prefix: nothing,
    end_of_word_suffix: nothing,
    ignore_merges: [undefined, false, true],
  })
  if (root.normalizer !== undefined && root.normalizer !== null) {
    throw unsupported('normalizer.type', fields(root.normalizer, 'normalizer').type)
  }
  expect(fields(root.decoder ?? {}, 'decoder'), 'decoder', { type: ['ByteLevel'] })
  const digits = readDigits(root.pre_tokenizer)
  const added = readAdded(root.added_tokens)
  const vocabulary = new Vocabulary(readTokens(model.vocab, added))
  const byteIds = byteLevel.map((char, byte) => {
    const id = vocabulary.find(char)
    if (id === undefined) throw broken('model.vocab', `complete: byte ${byte} needs a token ${show(char)}`, undefined)
    return id
  })
  const merges = readMerges(model.merges, vocabulary)
  return { vocabulary, merges, added, byteIds, ignoreMerges: model.ignore_merges === true, digits }
}

// 2^24 is a hundred times the largest vocabulary there is, and keeps a broken id from allocating gigabytes.
const tokenId = 'an integer from 0 to 2^24 - 1'
const isTokenId = (value: unknown): value is number => Number.isInteger(value) && Number(value) >= 0 && Number(value) < 2 ** 24

/** The two of a merge, "a b" or ["a", "b"]; nothing of anything else. */
function halves(pair: unknown): readonly unknown[] {
  if (typeof pair !== 'string') return Array.isArray(pair) && pair.length === 2 ? pair : []
  const blank = pair.indexOf(' ')
  return blank < 0 ? [] : [pair.slice(0, blank), pair.slice(blank + 1)]
}

/** A value for an error message: short, and never the whole file. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing'
  return text.length > 120 ? `${text.slice(0, 117)}...` : text
}
