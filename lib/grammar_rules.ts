/**
 * The rules of a grammar, in a form that xgrammar gets right:
 *
 * - Its classes are sets of bytes. Here characters are spelled as the bytes of UTF-8.
 * - It merges states by what comes before them and by what comes after them at once, so that "dc" | "aab" | "aac" takes db
 *   too. Here no two alternatives of a rule begin alike: what they share is drawn out.
 * - A token that runs past the end of a rule is tried out at each step. Here a repeated character is no rule of its own.
 *
 * Pure; for the worker of grammar.ts.
 */
import { InputError } from './errors.ts'

/** Code points from..to, both included; a set of characters is a list of them. */
export type Characters = readonly (readonly [from: number, to: number])[]

/** Of a set, what lies in from..to. */
export function within(set: Characters, from: number, to: number): Characters {
  return set.filter(([a, b]) => a <= to && b >= from).map(([a, b]) => [Math.max(a, from), Math.min(b, to)] as const)
}

/** What may come, one after the other: each a byte, a class of bytes, or the name of a rule, as xgrammar reads them. */
export type Sequence = readonly string[]

/** A rule is what may come instead of each other. */
export type Rule = readonly Sequence[]

const isName = (symbol: string) => symbol.startsWith('r')
/** Without how often it comes. */
const ruleOf = (symbol: string) => symbol.replace(/\{.*/, '')

/** Turns of a repetition that are written out as rules; more are counted, which takes time at each step. */
const mostWritten = 128

/** The rules of a grammar. */
export class Rules {
  readonly #most: number
  readonly #rules = new Map<string, Rule>()
  readonly #names = new Map<string, string>() // by what a rule is
  readonly #expanded = new Map<string, Rule>()

  constructor(most: number) {
    this.#most = most
  }

  reserve(): string {
    if (this.#rules.size >= this.#most) {
      throw new InputError('ERR_FORMAT_SIZE', `the format takes more than ${this.#most} rules; make it smaller`)
    }
    const name = `r${this.#rules.size}`
    this.#rules.set(name, [])
    return name
  }

  define(name: string, rule: Rule): void {
    this.#rules.set(name, rule)
  }

  add(rule: Rule, kind = ''): string {
    const key = `${kind}${rule.map(sequence => sequence.join(' ')).join(' | ')}`
    const known = this.#names.get(key)
    if (known) return known
    const name = this.reserve()
    this.#names.set(key, name)
    this.define(name, kind ? [[], ...rule.filter(({ length }) => length > 0).map(sequence => [...sequence, name])] : rule)
    return name
  }

  /** A rule as a part of a sequence. */
  inline(rule: Rule): Sequence {
    return rule.length === 1 ? rule[0]! : [this.add(rule)]
  }

  /** A rule `least` to `most` times. */
  times(rule: Rule, least: number, most: number): Sequence {
    const isCharacter = rule.every(sequence => sequence.length <= 4 && !sequence.some(isName))
    const written = most < Number.POSITIVE_INFINITY ? most : least
    if (written > mostWritten) {
      if (!isCharacter || rule.every(([symbol]) => width(symbol!) <= 64)) {
        return [`${this.add(rule)}{${least},${most < Number.POSITIVE_INFINITY ? most : ''}}`]
      }
      const found = `any of many characters is repeated up to ${written} times`
      throw new InputError('ERR_FORMAT_SIZE', `${found}, expected at most ${mostWritten}, or without an end`)
    }
    const turn = isCharacter ? rule : [[this.add(rule)]]
    const then = (rest: Sequence) => turn.map(sequence => [...sequence, ...rest])
    let rest: Sequence = []
    if (most === Number.POSITIVE_INFINITY) rest = [this.add(rule, '*')]
    else for (let i = least; i < most; i++) rest = [this.add([[], ...then(rest)])]
    for (let i = 0; i < least; i++) rest = this.inline(then(rest))
    return rest
  }

  /** All that can be reached from a rule, in the form that xgrammar gets right. */
  normal(root: string): string {
    this.#prune(root)
    const done = new Map<string, Rule>()
    const open = [root]
    for (let name = open.pop(); name; name = open.pop()) {
      if (done.has(name)) continue
      const rule = this.#apart(this.#expand(name)).map(sequence => this.#ascii(sequence))
      done.set(name, rule)
      for (const symbol of rule.flat()) if (isName(symbol)) open.push(ruleOf(symbol))
    }
    // xgrammar puts a rule without names in the place of its name at the beginning of another: an empty rule keeps it from that.
    const first = new Set([...done.values()].flat().map(sequence => sequence[0]))
    const plain = (rule: Rule) => rule.every(sequence => sequence.length > 0 && !sequence.some(isName))
    const lines = [`root ::= ${root}`, 'empty ::= ""']
    for (const [name, rule] of done) {
      const end = first.has(name) && plain(rule) ? ['empty'] : []
      lines.push(`${name} ::= ${rule.map(sequence => spell([...sequence, ...end])).join(' | ')}`)
    }
    return lines.join('\n')
  }

  /** Leaves out what never comes to an end: no text could get out of it. */
  #prune(root: string): void {
    const finite = new Set<string>()
    const ends = (sequence: Sequence) => sequence.every(symbol => !isName(symbol) || finite.has(ruleOf(symbol)))
    for (let before = -1; before < finite.size; ) {
      before = finite.size
      for (const [name, rule] of this.#rules) if (!finite.has(name) && rule.some(ends)) finite.add(name)
    }
    if (!finite.has(root)) throw new InputError('ERR_FORMAT_EMPTY', 'the format has no end: no text satisfies it')
    for (const [name, rule] of this.#rules) this.#rules.set(name, rule.filter(ends))
  }

  /** A rule in which names at the beginning are replaced by what they stand for, if that is short and without names. */
  #expand(name: string): Rule {
    const known = this.#expanded.get(name)
    if (known) return known
    const rule = this.#rules.get(name)!
    this.#expanded.set(name, rule) // until it is known
    const expanded = rule.flatMap(sequence => {
      const [head, ...rest] = sequence
      const inner = head !== undefined && this.#rules.has(head) ? this.#expand(head) : []
      const short = inner.length > 0 && inner.length <= 64 && inner.every(({ length }) => length > 0 && length <= 16)
      return short && !inner.flat().some(isName) ? inner.map(begin => [...begin, ...rest]) : [sequence]
    })
    this.#expanded.set(name, expanded)
    return expanded
  }

  /** The same, with no two sequences that begin with the same symbol. */
  #apart(rule: Rule): Rule {
    const groups = new Map<string | undefined, Sequence[]>(rule.map(([symbol]) => [symbol, []]))
    for (const sequence of rule) groups.get(sequence[0])!.push(sequence)
    return [...groups.values()].map(group => {
      const shortest = group.reduce((a, b) => (b.length < a.length ? b : a))
      let common = shortest.findIndex((symbol, i) => group.some(sequence => sequence[i] !== symbol))
      if (common < 0) common = shortest.length
      const rests = new Map(group.map(sequence => [sequence.join(' '), sequence.slice(common)]))
      return [...shortest.slice(0, common), ...this.inline([...rests.values()])]
    })
  }

  /** The same, with bytes of other characters than ASCII after a name in a rule of their own: xgrammar looks ahead in ASCII. */
  #ascii(sequence: Sequence): Sequence {
    const name = sequence.findIndex(isName)
    const at = sequence.findIndex((symbol, i) => name >= 0 && i > name && /^\[.*\\x[89a-f]/.test(symbol))
    return at < 0 ? sequence : [...sequence.slice(0, at), this.add([sequence.slice(at)])]
  }
}

function spell(sequence: Sequence): string {
  const parts: string[] = []
  for (const symbol of sequence) {
    const last = parts.at(-1)
    if (last?.startsWith('"') && symbol.startsWith('"')) parts[parts.length - 1] = last.slice(0, -1) + symbol.slice(1)
    else parts.push(symbol)
  }
  return parts.join(' ') || '""'
}

const hex = (byte: number) => `\\x${byte.toString(16).padStart(2, '0')}`

/** A class of one byte names it twice: xgrammar would take it for a character. */
export function byteSymbol(byte: number): string {
  if (byte >= 0x80) return `[${hex(byte)}${hex(byte)}]`
  const char = String.fromCharCode(byte)
  if (byte < 0x20 || byte === 0x7f) return `"\\u00${byte.toString(16).padStart(2, '0')}"`
  return char === '"' || char === '\\' ? `"\\${char}"` : `"${char}"`
}

/** How many bytes a symbol stands for. */
function width(symbol: string): number {
  if (!symbol.startsWith('[')) return 1
  const ranges = [...symbol.matchAll(/\\x(..)(?:-\\x(..))?/g)]
  return ranges.reduce((sum, [, from, to = from]) => sum + Number.parseInt(to!, 16) - Number.parseInt(from!, 16) + 1, 0)
}

const classSymbol = (ranges: Characters) =>
  ranges.length === 1 && ranges[0]![0] === ranges[0]![1]
    ? byteSymbol(ranges[0]![0])
    : `[${ranges.map(([from, to]) => (from === to ? hex(from) : `${hex(from)}-${hex(to)}`)).join('')}]`

/** One character of a set as bytes. */
export function utf8(set: Characters): Rule {
  const ascii = within(set, 0, 0x7f)
  const last = new Map<string, { begin: Sequence; ranges: [number, number][] }>()
  const lengths = [
    [0x80, 0x7ff],
    [0x800, 0xd7ff],
    [0xe000, 0xffff],
    [0x10000, 0x10ffff],
  ] as const
  for (const bytes of lengths.flatMap(([from, to]) => within(set, from, to).flatMap(range => sequences(...range)))) {
    const begin = bytes.slice(0, -1).map(range => classSymbol([range]))
    const key = begin.join(' ')
    if (!last.has(key)) last.set(key, { begin, ranges: [] })
    last.get(key)!.ranges.push(bytes.at(-1)!)
  }
  const others = [...last.values()].map(({ begin, ranges }) => [...begin, classSymbol(ranges)])
  return ascii.length > 0 ? [[classSymbol(ascii)], ...others] : others
}

/** The bytes of code points whose UTF-8 has the same length: sequences of ranges, each byte of its range whatever the others are. */
function sequences(from: number, to: number): [number, number][][] {
  const [first, last] = [from, to].map(point => Buffer.from(String.fromCodePoint(point))) as [Buffer, Buffer]
  for (let free = 1; free < first.length; free++) {
    const block = 64 ** free // code points that differ in the last bytes only
    const [begin, end] = [from - (from % block), to - (to % block)]
    if (begin === end) continue
    if (from > begin) return [...sequences(from, begin + block - 1), ...sequences(begin + block, to)]
    if (to < end + block - 1) return [...sequences(from, end - 1), ...sequences(end, to)]
  }
  return [Array.from(first, (byte, i) => [byte, last[i]!])]
}

/** All characters that a set has not, in order. */
export function others(set: Characters): Characters {
  const found: [number, number][] = []
  let next = 0
  for (const [from, to] of [...set].sort(([a], [b]) => a - b)) {
    if (from > next) found.push([next, from - 1])
    next = Math.max(next, to + 1)
  }
  if (next <= 0x10ffff) found.push([next, 0x10ffff])
  return found
}
