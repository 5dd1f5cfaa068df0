/**
 * Grammars in EBNF, as xgrammar writes it: names, "texts", [classes], groups, | * + ? {2} {2,} {2,5} and # comments. They
 * are read here and written again in a form that it gets right. Pure; for the worker of grammar.ts.
 */
import { InputError } from './errors.ts'
import { byteSymbol, type Characters, others, type Rule, Rules, type Sequence, utf8 } from './grammar_rules.ts'

/** How much a format may ask for. */
export interface GrammarLimits {
  /** Schemas, groups or parentheses inside of each other. */
  readonly depth: number
  /** Rules, after repetitions are written out. */
  readonly rules: number
}

/**
 * The grammar in the form that xgrammar gets right. It begins with the rule root.
 * @throws InputError ERR_FORMAT_GRAMMAR: not a grammar; ERR_FORMAT_EMPTY: it takes no text; ERR_FORMAT_SIZE: over a limit
 */
export function normalGrammar(text: string, limits: GrammarLimits): string {
  const rules = new Rules(limits.rules)
  return rules.normal(new Reader(text, rules, limits.depth).read())
}

/** EBNF for a text. */
export function literal(text: string): string {
  return `"${text.replace(/["\\]/g, '\\$&').replace(/\p{Cc}/gu, char => escapeOf(char.codePointAt(0)!))}"`
}

/** EBNF for one character of a set. */
export function characterClass(set: Characters): string {
  return `[${set.map(([from, to]) => `${escapeOf(from)}-${escapeOf(to)}`).join('')}]`
}

const escapeOf = (point: number) => `\\U${point.toString(16).padStart(8, '0')}`

/** Blanks and comments, a name, a text, a class, a repetition, or punctuation. */
const token =
  /(?<blank>(?:\s|#.*)+)|(?<name>[\w.-]+)|"(?<text>(?:\\.|[^"\\\n\r])*)"|\[(?<set>(?:\\.|[^\]\\\n\r])*)\]|\{ *(?<least>\d+) *(?<comma>,?) *(?<most>\d*) *\}|(?<sign>::=|[()|*+?])/uy

interface Token {
  readonly name?: string
  readonly text?: string
  readonly set?: string
  readonly least?: string
  readonly comma?: string
  readonly most?: string
  readonly sign?: string
  readonly at: number
}

class Reader {
  readonly #text: string
  readonly #rules: Rules
  readonly #depth: number
  readonly #tokens: Token[] = []
  readonly #named = new Map<string, string>() // the names of rules here by those in the text
  #next = 0

  constructor(text: string, rules: Rules, depth: number) {
    this.#text = text
    this.#rules = rules
    this.#depth = depth
    for (token.lastIndex = 0; token.lastIndex < text.length; ) {
      const at = token.lastIndex
      const groups = token.exec(text)?.groups
      if (!groups) throw this.#refuse('cannot be read', at)
      if (groups.blank === undefined) this.#tokens.push({ ...groups, at })
    }
  }

  /** The name of the root. */
  read(): string {
    for (const [i, { name, at }] of this.#tokens.entries()) {
      if (this.#tokens[i + 1]?.sign !== '::=') continue
      if (name === undefined) throw this.#refuse('has no name before ::=', at)
      if (this.#named.has(name)) throw this.#refuse(`defines ${name} twice`, at)
      this.#named.set(name, this.#rules.reserve())
    }
    const root = this.#named.get('root')
    if (root === undefined) throw this.#refuse('has no rule root', this.#text.length)
    while (this.#next < this.#tokens.length) {
      const { name, at } = this.#tokens[this.#next]!
      if (!this.#defines()) throw this.#refuse(this.#next === 0 ? 'begins with no rule' : 'has a ) without (', at)
      this.#next += 2
      this.#rules.define(this.#named.get(name!)!, this.#rule(0))
    }
    return root
  }

  /** Whether the next tokens begin a rule. */
  #defines(): boolean {
    return this.#tokens[this.#next + 1]?.sign === '::='
  }

  /** Up to a ) or the next rule. */
  #rule(depth: number): Rule {
    if (depth > this.#depth) {
      throw new InputError('ERR_FORMAT_SIZE', `the grammar has parentheses more than ${this.#depth} deep; name rules instead`)
    }
    const rule: string[][] = [[]]
    while (this.#next < this.#tokens.length && !this.#defines() && this.#tokens[this.#next]!.sign !== ')') {
      if (this.#tokens[this.#next]!.sign === '|') {
        this.#next++
        rule.push([])
      } else rule.at(-1)!.push(...this.#repeated(this.#element(depth)))
    }
    return rule
  }

  #element(depth: number): Rule {
    const { name, text, set, sign, at } = this.#tokens[this.#next++]!
    if (name !== undefined) {
      const rule = this.#named.get(name)
      if (rule === undefined) throw this.#refuse(`has no rule ${name}`, at)
      return [[rule]]
    }
    if (text !== undefined) {
      const points = this.#points(text, false, at).map(([point]) => point)
      return [Array.from(Buffer.from(points.map(point => String.fromCodePoint(point)).join('')), byteSymbol)]
    }
    if (set !== undefined) {
      const negated = set.startsWith('^')
      const points = this.#points(negated ? set.slice(1) : set, true, at)
      const bytes = utf8(others(negated ? points : others(points)))
      if (bytes.length === 0) throw this.#refuse(`has no character in [${set}]`, at)
      return bytes
    }
    if (sign !== '(') throw this.#refuse(`has ${this.#text.slice(at, at + 9)} after nothing`, at)
    const rule = this.#rule(depth + 1)
    if (this.#tokens[this.#next++]?.sign !== ')') throw this.#refuse('has a ( without )', at)
    return rule
  }

  #repeated(rule: Rule): Sequence {
    const { sign, least, comma, most, at } = this.#tokens[this.#next] ?? { at: 0 }
    const isSign = sign === '*' || sign === '+' || sign === '?'
    if (!isSign && least === undefined) return this.#rules.inline(rule)
    this.#next++
    const from = isSign ? Number(sign === '+') : Number(least)
    const to = sign === '?' ? 1 : isSign || (comma && !most) ? Number.POSITIVE_INFINITY : Number(most || least)
    if (from > to) throw this.#refuse(`repeats from ${from} to ${to} times`, at)
    return this.#rules.times(rule, from, to)
  }

  /** The characters of a text; those of a class may be ranges. */
  #points(text: string, isClass: boolean, at: number): Characters {
    const found: [number, number][] = []
    const all = [...text.matchAll(/\\x([\da-fA-F]+)|\\u([\da-fA-F]{4})|\\U([\da-fA-F]{8})|\\(.)|(.)/gsu)]
    const pointOf = ([escaped, x, u, long, sign, char]: RegExpExecArray): number => {
      const code = x ?? u ?? long
      const point = code !== undefined ? Number.parseInt(code, 16) : char !== undefined ? char.codePointAt(0)! : escapes(sign!)
      if (point !== undefined && point <= 0x10ffff && point >> 11 !== 0x1b) return point
      throw this.#refuse(`has an escape that is none, ${escaped}`, at)
    }
    for (let i = 0; i < all.length; i++) {
      const from = pointOf(all[i]!)
      const isRange = isClass && all[i + 1]?.[5] === '-' && i + 2 < all.length
      if (isRange) i += 2
      const to = isRange ? pointOf(all[i]!) : from
      if (from > to) throw this.#refuse(`has a range that ends before it begins in [${text}]`, at)
      found.push([from, to])
    }
    return found
  }

  #refuse(what: string, at: number): InputError {
    const before = this.#text.slice(0, at).split('\n')
    const place = `line ${before.length}, column ${before.at(-1)!.length + 1}`
    return new InputError('ERR_FORMAT_GRAMMAR', `the grammar ${what} at ${place}`)
  }
}

/** The character of an escape with one letter; none for what stands for several characters. */
function escapes(sign: string): number | undefined {
  const control = { n: 10, r: 13, t: 9, f: 12, v: 11, a: 7, b: 8, e: 27, '0': 0 }[sign]
  return control ?? (/[a-zA-Z1-9]/.test(sign) ? undefined : sign.codePointAt(0))
}
