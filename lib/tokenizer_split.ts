/**
 * How Llama 3 cuts text into the pieces that byte pair encoding works on. The tokenizer's regular expression is written
 * here as a scanner: it reads every character at most twice, where a regex engine backtracks or runs out of stack on a
 * megabyte of one class, and it means what the reference (Oniguruma) means where JavaScript's syntax differs: \s is
 * White_Space (U+0085 but not U+FEFF) and (?i:'s) folds by Unicode, so that it takes U+017F (long s) too.
 */

const split = (number: string) =>
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|${number}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

/** The regular expressions that `pieceEnd` can stand in for, and the most digits each puts in one piece. */
export const splitPatterns: ReadonlyMap<string, number> = new Map([
  [split(String.raw`\p{N}{1,3}`), 3], // Llama 3
  [split(String.raw`\p{N}{1,2}`), 2],
  [split(String.raw`\p{N}`), 1],
])

const OTHER = 1
const LETTER = 2
const NUMBER = 3
const SPACE = 4
const NEWLINE = 5
const END = 6

const UNLIMITED = 2 ** 31

const kinds = new Uint8Array(0x110000) // by code point; 0: not asked for yet

function classify(code: number): number {
  const char = String.fromCodePoint(code)
  if (char === '\n' || char === '\r') return NEWLINE
  if (/\p{L}/u.test(char)) return LETTER
  if (/\p{N}/u.test(char)) return NUMBER
  return /\p{White_Space}/u.test(char) ? SPACE : OTHER
}

function kindOf(code: number | undefined): number {
  if (code === undefined) return END
  if (kinds[code] === 0) kinds[code] = classify(code)
  return kinds[code]!
}

const width = (code: number) => (code > 0xffff ? 2 : 1)

/** Where a run of at most `limit` characters of one kind ends. */
function runEnd(text: string, at: number, kind: number, limit = UNLIMITED): number {
  for (let count = 0; count < limit; count++) {
    const code = text.codePointAt(at)
    if (code === undefined || kindOf(code) !== kind) break
    at += width(code)
  }
  return at
}

/** How many characters of `'s 't 're 've 'm 'll 'd` follow the apostrophe, in either case; 0 when it is none of them. */
function contraction(text: string, at: number): number {
  switch (text[at]) {
    case 's':
    case 'S':
    case '\u017f':
    case 't':
    case 'T':
    case 'm':
    case 'M':
    case 'd':
    case 'D':
      return 1
    default:
      return /^(?:re|ve|ll)$/i.test(text.slice(at, at + 2)) ? 2 : 0
  }
}

/** A run of white space ends after its last line break; without one, before its last character if a word follows. */
function spaceEnd(text: string, start: number): number {
  let newline = 0
  let end = start
  for (; ; end++) {
    const kind = kindOf(text.codePointAt(end))
    if (kind === NEWLINE) newline = end + 1
    else if (kind !== SPACE) break
  }
  if (newline > 0) return newline
  return end === text.length || end === start + 1 ? end : end - 1
}

/** The end of the piece that begins at `start`, which must lie inside the text; `digits` is the most it takes of a number. */
export function pieceEnd(text: string, start: number, digits: number): number {
  const code = text.codePointAt(start)!
  const kind = kindOf(code)
  const after = start + width(code)
  if (kind === LETTER) return runEnd(text, after, LETTER)
  if (kind === NUMBER) return runEnd(text, after, NUMBER, digits - 1)
  if (code === 0x27) {
    const letters = contraction(text, after)
    if (letters > 0) return after + letters
  }
  if (kind !== NEWLINE) {
    const next = kindOf(text.codePointAt(after))
    if (next === LETTER) return runEnd(text, after, LETTER)
    if (kind === OTHER || (code === 0x20 && next === OTHER)) return runEnd(text, runEnd(text, after, OTHER), NEWLINE)
  }
  return spaceEnd(text, start)
}
