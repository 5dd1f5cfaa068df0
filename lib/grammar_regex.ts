/**
 * Regular expressions as EBNF. The syntax is JavaScript's with the flag u, and so is the meaning: which characters a class
 * has is asked of the JavaScript engine itself. Pure; for the worker of grammar.ts.
 */
import { InputError } from './errors.ts'
import type { GrammarLimits } from './grammar_ebnf.ts'
import type { Characters } from './grammar_rules.ts'

/** EBNF for one character of a set: as it is in plain text, escaped in a JSON string. */
export type Spell = (set: Characters) => string

/**
 * EBNF for what a whole text must match; ^ and $ around the pattern or its alternatives say nothing more.
 * @throws InputError ERR_FORMAT_REGEX: not a regular expression, or one with assertions or back references; ERR_FORMAT_SIZE
 */
export function regexGrammar(pattern: string, spell: Spell, limits: GrammarLimits): string {
  try {
    new RegExp(pattern, 'u')
  } catch (cause) {
    const { message } = cause as Error
    throw new InputError('ERR_FORMAT_REGEX', `${message}; the syntax is that of JavaScript with the flag u`, { cause })
  }
  return new Reader(pattern, spell, limits).alternatives(0)
}

/** What stands for one character, begins a group ([1] is its head), or is punctuation. */
const token =
  /\\u\{[\da-f]+\}|\\ud[89ab][\da-f]{2}\\ud[c-f][\da-f]{2}|\\u[\da-f]{4}|\\x[\da-f]{2}|\\c[a-z]|\\p\{[^}]*\}|\\k<[^>]*>|\\.|\[(?:\\.|[^\]\\])*\]|(\(\?<[^=!][^>]*>|\(\?:|\(\?<?[=!]|\(\?[^)]*:|\()|./isuy

class Reader {
  readonly #pattern: string
  readonly #spell: Spell
  readonly #most: number
  #at = 0

  constructor(pattern: string, spell: Spell, limits: GrammarLimits) {
    this.#pattern = pattern
    this.#spell = spell
    this.#most = limits.depth
  }

  /** To the end of the pattern, or of the group. */
  alternatives(depth: number): string {
    if (depth > this.#most) {
      throw new InputError('ERR_FORMAT_SIZE', `the pattern has groups more than ${this.#most} deep; make it flatter`)
    }
    const alternatives: string[] = []
    let sequence: string[] = []
    let closed = false // after $ nothing may come
    const end = () => {
      alternatives.push(sequence.join(' ') || '""')
      sequence = []
      closed = false
    }
    for (let match = this.#next(token); match; match = this.#next(token)) {
      const text = match[0]
      if (text === '|') end()
      else if (text === ')') break
      else if (text === '^' && depth === 0 && sequence.length === 0 && !closed) continue
      else if (text === '$' && depth === 0 && !closed) closed = true
      else if (closed || text === '^' || text === '$') throw this.#refuse('^ or $ inside of it')
      else sequence.push(this.#repeated(match, depth))
    }
    end()
    return alternatives.join(' | ')
  }

  #next(what: RegExp): RegExpExecArray | null {
    what.lastIndex = this.#at
    const match = what.exec(this.#pattern)
    if (match) this.#at = what.lastIndex
    return match
  }

  #repeated([text, head]: RegExpExecArray, depth: number): string {
    if (head && head !== '(' && !/^\(\?(?::|<[^=!])/.test(head)) throw this.#refuse('an assertion or a flag')
    const what = head ? `(${this.alternatives(depth + 1)})` : this.#spell(this.#set(text))
    const times = this.#next(/([*+?]|\{\d+,?\d*\})\??/y) // lazy or not, the same texts match
    return what + (times?.[1] ?? '')
  }

  #set(text: string): Characters {
    if (/^\\[bB]/.test(text)) throw this.#refuse('a word boundary')
    if (/^\\(?:k|[1-9])/.test(text)) throw this.#refuse('a back reference')
    if (/^[^\\[.]/u.test(text)) return [[text.codePointAt(0)!, text.codePointAt(0)!]]
    const set = charactersOf(text)
    if (set.length === 0) throw this.#refuse('a class without characters')
    return set
  }

  #refuse(what: string): InputError {
    const pattern = this.#pattern.length > 100 ? `${this.#pattern.slice(0, 97)}...` : this.#pattern
    return new InputError('ERR_FORMAT_REGEX', `the pattern ${pattern} has ${what} before ${this.#at}, which cannot be held`)
  }
}

/** Every character, in order. */
let everything: string | undefined
const known = new Map<string, Characters>()

/** The characters that an atom of a regular expression matches. */
function charactersOf(atom: string): Characters {
  const before = known.get(atom)
  if (before) return before
  everything ??= Array.from({ length: 0x220 }, (_, block) => {
    if (block === 0x1b) return '' // surrogates
    return String.fromCodePoint(...Array.from({ length: 0x800 }, (_, i) => block * 0x800 + i))
  }).join('')
  const found: [number, number][] = []
  for (const { 0: run, index } of everything.matchAll(new RegExp(`${atom}+`, 'gu'))) {
    const from = run.codePointAt(0)!
    const end = index + run.length
    const to = everything.codePointAt(end - (/[\udc00-\udfff]$/.test(run) ? 2 : 1))!
    if (from < 0xd800 && to > 0xdfff) found.push([from, 0xd7ff], [0xe000, to])
    else found.push([from, to])
  }
  if (known.size >= 100) known.clear()
  known.set(atom, found)
  return found
}
