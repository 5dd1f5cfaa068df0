/** Tokens to text while they arrive, never half a character. */

import type { Tokenizer } from './tokenizer.ts'

/** One per generation: the pieces, put together, are exactly what `tokenizer.decode` makes of all the tokens. */
export class Detokenizer {
  readonly #tokenizer: Tokenizer
  #held: Uint8Array = new Uint8Array(0) // the beginning of a character, at most 3 bytes

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer
  }

  /** The text this token completes: empty for a special token, and while a character lacks bytes. */
  push(token: number): string {
    if (this.#tokenizer.isSpecial(token)) return ''
    const bytes = Buffer.concat([this.#held, this.#tokenizer.bytes(token)])
    const whole = bytes.length - unfinished(bytes)
    this.#held = bytes.subarray(whole)
    return bytes.toString('utf8', 0, whole)
  }

  /** What is left when no token follows: U+FFFD for a character that never got its last bytes, otherwise nothing. */
  end(): string {
    const rest = Buffer.from(this.#held).toString('utf8')
    this.#held = new Uint8Array(0)
    return rest
  }
}

/** How many bytes at the end begin a character that valid bytes could still complete. */
function unfinished(bytes: Uint8Array): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back]!
    if (byte >= 0x80 && byte < 0xc0) continue // a continuation byte: its lead comes before
    const length = byte >= 0xc2 && byte < 0xe0 ? 2 : byte >= 0xe0 && byte < 0xf0 ? 3 : byte >= 0xf0 && byte < 0xf5 ? 4 : 1
    return length > back && (back === 1 || secondFits(byte, bytes[bytes.length - back + 1]!)) ? back : 0
  }
  return 0
}

/** Overlong forms, surrogates and what lies beyond U+10FFFF are wrong from the second byte on. */
function secondFits(lead: number, second: number): boolean {
  if (lead === 0xe0) return second >= 0xa0
  if (lead === 0xed) return second < 0xa0
  if (lead === 0xf0) return second >= 0x90
  return lead !== 0xf4 || second < 0x90
}
