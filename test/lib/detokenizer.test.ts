import { readFileSync } from 'node:fs'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { Detokenizer } from '../../lib/detokenizer.ts'
import { Tokenizer } from '../../lib/tokenizer.ts'

const tokenizer = Tokenizer.parse(JSON.parse(readFileSync('lib/demo/tokenizer.json', 'utf8')), 'tokenizer.json')
const seed = Number(process.env.SEED ?? 20260101) // in the report of a failure, with the smallest case

/** The demo's token for each byte value. */
const byteToken: number[] = []
for (let id = 0; id < tokenizer.size; id++) {
  const bytes = tokenizer.bytes(id)
  if (bytes.length === 1 && !tokenizer.isSpecial(id)) byteToken[bytes[0]!] = id
}

/** The pieces of a stream, the last from `end`. */
function stream(tokens: readonly number[]): string[] {
  const detokenizer = new Detokenizer(tokenizer)
  return [...tokens.map(token => detokenizer.push(token)), detokenizer.end()]
}

const bytesOf = (text: string) => Array.from(Buffer.from(text), byte => byteToken[byte]!)

test('there is a token for every byte', () => {
  expect(Object.keys(byteToken)).toHaveLength(256)
})

describe('the pieces together are the text', () => {
  const anyToken = fc.integer({ min: 0, max: tokenizer.size + 3 }) // some beyond the vocabulary
  const anyByte = fc.integer({ min: 0, max: 255 }).map(byte => byteToken[byte]!)
  // Bytes around every limit of UTF-8, where a decoder in pieces and one of the whole text could disagree.
  const edges = [
    0x20, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3,
    0xf4, 0xf5, 0xff, 0xbb,
  ]
  const edgeByte = fc.constantFrom(...edges.map(byte => byteToken[byte]!))
  const special = fc.constantFrom(...tokenizer.specialTokens.values())

  test.each([
    ['any tokens', fc.array(anyToken, { maxLength: 40 })],
    ['any bytes', fc.array(anyByte, { maxLength: 12 })],
    ['the edges of UTF-8', fc.array(edgeByte, { maxLength: 10 })],
    ['text as bytes', fc.string({ unit: 'binary' }).map(bytesOf)],
    ['text with special tokens in it', fc.array(fc.oneof(edgeByte, special), { maxLength: 12 })],
  ])('%s', (_, tokens) => {
    fc.assert(
      fc.property(tokens, tokens => {
        expect(stream(tokens).join('')).toBe(tokenizer.decode(tokens))
      }),
      { seed, numRuns: 2000 },
    )
  })

  test('all pairs of bytes, alone and before a continuation', () => {
    const utf8 = new TextDecoder('utf-8', { ignoreBOM: true })
    for (let first = 0x80; first < 256; first++) {
      for (let second = 0; second < 256; second++) {
        for (const rest of [[], [0x80], [0xbf, 0x80]]) {
          const bytes = [first, second, ...rest]
          const text = stream(bytes.map(byte => byteToken[byte]!)).join('')
          if (text !== utf8.decode(Uint8Array.from(bytes)))
            expect({ bytes, text }).toEqual({ bytes, text: utf8.decode(Uint8Array.from(bytes)) })
        }
      }
    }
  })
})

test('no piece holds half a character', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), text => {
      for (const piece of stream(bytesOf(text))) {
        expect(piece).not.toContain('\ufffd')
        expect(piece).not.toMatch(/\p{Surrogate}/u)
      }
    }),
    { seed, numRuns: 2000 },
  )
})

test('a character comes out with its last byte, and waits for no more', () => {
  expect(stream(bytesOf('aé€😀'))).toEqual(['a', '', 'é', '', '', '€', '', '', '', '😀', ''])
})

test('bytes that cannot become a character are not waited for', () => {
  const push = (bytes: number[]) => stream(bytes.map(byte => byteToken[byte]!))
  expect(push([0xff, 0x61])).toEqual(['\ufffd', 'a', ''])
  expect(push([0xc0, 0x80])).toEqual(['\ufffd', '\ufffd', ''])
  expect(push([0xed, 0xa0, 0x80])).toEqual(['', '\ufffd\ufffd', '\ufffd', ''])
  expect(push([0xf0, 0x9f, 0x98])).toEqual(['', '', '', '\ufffd'])
})

test('a byte order mark is text', () => {
  expect(stream(bytesOf('\ufeffa\ufeff')).join('')).toBe('\ufeffa\ufeff')
})

test('special tokens emit nothing, also in the middle of a character', () => {
  const [first, second] = bytesOf('é')
  expect(stream([tokenizer.bos!, first!, tokenizer.idOf('<|eot_id|>')!, second!])).toEqual(['', '', '', 'é', ''])
})

test('after end a new text begins', () => {
  const detokenizer = new Detokenizer(tokenizer)
  detokenizer.push(byteToken[0xc3]!)
  expect([detokenizer.end(), detokenizer.end(), detokenizer.push(byteToken[0x61]!)]).toEqual(['\ufffd', '', 'a'])
})
