/** The types of JSON Schema as EBNF, each with the keywords that it can hold. Pure; for the worker of grammar.ts. */
import { InputError } from './errors.ts'
import { characterClass, type GrammarLimits, literal } from './grammar_ebnf.ts'
import { anyNumber, anyWhole, numbers } from './grammar_numbers.ts'
import { regexGrammar } from './grammar_regex.ts'
import { type Characters, within } from './grammar_rules.ts'

export type Schema = Readonly<Record<string, unknown>>

/** A grammar while it is written: rules in EBNF by their names. */
export class Rules {
  readonly #most: number
  readonly #bodies = new Map<string, string>()
  readonly #names = new Map<string, string>()

  constructor(most: number) {
    this.#most = most
  }

  /** The name of the rule with this body. */
  add(body: string): string {
    const known = this.#names.get(body)
    if (known) return known
    const name = this.reserve()
    this.#names.set(body, name)
    this.define(name, body)
    return name
  }

  reserve(): string {
    if (this.#bodies.size >= this.#most) {
      throw new InputError('ERR_FORMAT_SIZE', `the schema takes more than ${this.#most} rules; make it smaller`)
    }
    const name = `rule-${this.#bodies.size}`
    this.define(name, '')
    return name
  }

  define(name: string, body: string): void {
    this.#bodies.set(name, body)
  }

  has(name: string): boolean {
    return this.#bodies.has(name)
  }

  text(root: string): string {
    return [['root', root], ...this.#bodies].map(([name, body]) => `${name} ::= ${body}`).join('\n')
  }
}

/** Where a schema stands, and what it is written into. */
export interface Context {
  readonly rules: Rules
  readonly limits: GrammarLimits
  /** As a JSON pointer, for messages. */
  readonly path: string
  /** The name of the rule of a schema inside of this one. */
  readonly inner: (schema: unknown, at: string) => string
}

export const types = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null'] as const
export type Type = (typeof types)[number]

/** The keywords that say something of a type. */
export const keywords = {
  object: [
    'properties',
    'required',
    'additionalProperties',
    'propertyNames',
    'minProperties',
    'maxProperties',
    'unevaluatedProperties',
  ],
  array: ['items', 'prefixItems', 'minItems', 'maxItems', 'uniqueItems', 'unevaluatedItems'],
  string: ['minLength', 'maxLength', 'pattern', 'format'],
  number: ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf'],
}

export function refuse(path: string, found: string, why = ''): InputError {
  return new InputError('ERR_FORMAT_SCHEMA', `the schema at ${path} ${found}${why && `; ${why}`}`)
}

export function isType(value: unknown, type: Type): boolean {
  if (type === 'null') return value === null
  if (type === 'array') return Array.isArray(value)
  if (type === 'object') return typeof value === 'object' && value !== null && !Array.isArray(value)
  return type === 'integer' ? Number.isInteger(value) : typeof value === type
}

const space = '" "?'
const infinite = Number.POSITIVE_INFINITY

const unescaped: Characters = [
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0x10ffff],
]
const hex = '[0-9A-Fa-f]'
const short = '"\\\\" ["\\\\/bfnrt]'
const unicode = `"\\\\u" ([0-9A-Ca-cEFef] ${hex}{3} | [Dd] ([0-7] ${hex}{2} | [89ABab] ${hex}{2} "\\\\u" [Dd] [C-Fc-f] ${hex}{2}))`

/** Rules that every schema may use. */
const shared = {
  string: () => `"\\"" (${characterClass(unescaped)} | ${short} | ${unicode})* "\\""`,
  integer: () => anyWhole,
  number: () => anyNumber,
  boolean: () => '"true" | "false"',
  null: () => '"null"',
  any: (rules: Rules) =>
    (['string', 'number', 'boolean', 'null', 'array', 'object'] as const).map(name => basic(name, rules)).join(' | '),
  array: (rules: Rules) => items(basic('any', rules), 0, infinite),
  object: (rules: Rules) => pairs(basic('string', rules), basic('any', rules), 0),
}

/** The name of a rule for all values of a type, or all values. */
export function basic(name: keyof typeof shared, rules: Rules): string {
  const rule = `any-${name}`
  if (!rules.has(rule)) {
    rules.define(rule, '') // it may refer to itself
    rules.define(rule, shared[name](rules))
  }
  return rule
}

const times = (what: string, least: number, most: number) => `${what}{${least},${most === infinite ? '' : most}}`

function items(item: string, least: number, most: number): string {
  if (most === 0) return '"[]"'
  const all = `${item} ${times(`("," ${space} ${item})`, Math.max(0, least - 1), most - 1)}`
  return least > 0 ? `"[" ${all} "]"` : `"[" (${all})? "]"`
}

function pairs(key: string, value: string, least: number): string {
  const pair = `${key} ":" ${space} ${value}`
  const all = `${pair} ("," ${space} ${pair})*`
  return least > 0 ? `"{" ${all} "}"` : `"{" (${all})? "}"`
}

/** Keys come in the order of the schema; others than the listed ones come only where none is listed. */
export function objectRule(schema: Schema, { rules, path, inner }: Context): string {
  const { properties = {}, required = [], additionalProperties = true, unevaluatedProperties = true, propertyNames } = schema
  if (!isType(properties, 'object')) throw refuse(`${path}/properties`, 'is not an object')
  if (!Array.isArray(required)) throw refuse(`${path}/required`, 'is not an array')
  const listed = properties as Schema
  const names = Object.keys(listed).filter(name => listed[name] !== false)
  const missing = required.find(name => !names.includes(name))
  if (missing !== undefined) throw refuse(path, `requires ${JSON.stringify(missing)}`, 'which is not among its properties')
  const least = count(schema, 'minProperties', path) ?? 0
  const most = count(schema, 'maxProperties', path) ?? infinite
  const rest = additionalProperties === true ? unevaluatedProperties : additionalProperties
  if (names.length === 0 && rest !== false && most > 0) {
    if (least > 1 || most < infinite) throw refuse(path, 'counts properties', 'which cannot be held where none is listed')
    const key = propertyNames === undefined ? basic('string', rules) : inner(keys(propertyNames, path), 'propertyNames')
    return pairs(key, inner(rest, 'additionalProperties'), least)
  }
  if (propertyNames !== undefined) throw refuse(path, 'has propertyNames', 'which cannot be held beside properties')
  if (least > required.length || most < names.length) {
    throw refuse(path, 'counts properties', 'which cannot be held; say which are required')
  }
  let tail = '' // what may follow a pair
  let heads = ['""']
  for (const name of names.reverse()) {
    const value = inner(listed[name], `properties/${name}`)
    const pair = rules.add(`${literal(`${JSON.stringify(name)}:`)} ${space} ${value} ${tail}`)
    const optional = !required.includes(name)
    heads = optional ? [pair, ...heads] : [pair]
    tail = rules.add(optional ? `"," ${space} ${pair} | ${tail}` : `"," ${space} ${pair}`)
  }
  return `"{" (${heads.join(' | ')}) "}"`
}

/** The schema of keys: of strings, whether it says so or not. */
function keys(schema: unknown, path: string): unknown {
  if (schema === true) return { type: 'string' }
  if (!isType(schema, 'object')) throw refuse(`${path}/propertyNames`, 'is not an object or true')
  const { type = 'string' } = schema as Schema
  if (type !== 'string') throw refuse(`${path}/propertyNames`, `has type ${JSON.stringify(type)}`, 'keys are strings')
  return { ...(schema as Schema), type }
}

/** Without a word about items after prefixItems there are none, unless so many are asked for. */
export function arrayRule(schema: Schema, { rules, path, inner }: Context): string {
  const { prefixItems = [], items: item, unevaluatedItems = true, uniqueItems = false } = schema
  if (!Array.isArray(prefixItems)) throw refuse(`${path}/prefixItems`, 'is not an array')
  if (Array.isArray(item)) throw refuse(`${path}/items`, 'is an array', 'use prefixItems')
  const least = count(schema, 'minItems', path) ?? 0
  const given = count(schema, 'maxItems', path) ?? infinite
  const first = prefixItems.length
  const open = item ?? (unevaluatedItems === true ? first === 0 || least > first : unevaluatedItems)
  const most = open === false ? Math.min(given, first) : given
  if (least > most) throw refuse(path, `has minItems ${least}`, `and there can be ${most} at most`)
  if (uniqueItems !== false && most > 1) throw refuse(path, 'has uniqueItems', 'which cannot be held; leave it out')
  if (first === 0) return items(most === 0 ? '' : inner(open, 'items'), least, most)
  let tail = ''
  if (most > first) tail = times(`("," ${space} ${inner(open, 'items')})`, Math.max(0, least - first), most - first)
  for (let i = Math.min(first, most) - 1; i >= 0; i--) {
    const body = `${i > 0 ? `"," ${space}` : ''} ${inner(prefixItems[i], `prefixItems/${i}`)} ${tail}`.trim()
    tail = rules.add(i < least ? body : `(${body})?`)
  }
  return `"[" ${tail} "]"`
}

const date = '\\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))'
const time = '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)'
const label = '[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?'
const byte = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const uri = "([\\w.~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})"

/** Not all that the standards allow, but nothing else. */
const formats: Readonly<Record<string, string>> = {
  date,
  time,
  'date-time': `${date}T${time}`,
  duration: 'P(\\d+W|(\\d+Y)?(\\d+M)?\\d+D|(\\d+Y)?\\d+M|\\d+Y|T(\\d+H)?(\\d+M)?\\d+S|T(\\d+H)?\\d+M|T\\d+H)',
  email: `[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@(${label}\\.)+[A-Za-z]{2,}`,
  hostname: `${label}(\\.${label})*`,
  ipv4: `${byte}(\\.${byte}){3}`,
  ipv6: '([0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}',
  uri: `[A-Za-z][A-Za-z0-9+.-]*:${uri}+(#${uri}*)?`,
  uuid: '[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}',
}

export function stringRule(schema: Schema, { rules, limits, path }: Context): string {
  const least = count(schema, 'minLength', path) ?? 0
  const most = count(schema, 'maxLength', path) ?? infinite
  const { pattern, format } = schema
  if (least > most) throw refuse(path, `has minLength ${least}`, `and maxLength ${most}`)
  if (pattern === undefined && format === undefined) {
    if (least === 0 && most === infinite) return basic('string', rules)
    // Without \u: a character beyond U+FFFF would take two of them.
    return `"\\"" ${times(`(${characterClass(unescaped)} | ${short})`, least, most)} "\\""`
  }
  if (least > 0 || most < infinite) {
    const form = pattern === undefined ? 'format' : 'pattern'
    throw refuse(path, `has minLength or maxLength beside ${form}`, 'both cannot be held; say it in a pattern')
  }
  if (pattern === undefined && !Object.hasOwn(formats, String(format))) {
    const possible = Object.keys(formats).join(', ')
    throw refuse(path, `has format ${JSON.stringify(format)}`, `which cannot be held; use a pattern, or one of ${possible}`)
  }
  if (pattern !== undefined && typeof pattern !== 'string') throw refuse(`${path}/pattern`, 'is not a string')
  // Beside a pattern a format is a remark.
  return `"\\"" (${regexGrammar(pattern ?? formats[format as string]!, escaped, limits)}) "\\""`
}

/** EBNF for one character of a set inside of a JSON string. */
function escaped(set: Characters): string {
  const alone = unescaped.flatMap(([from, to]) => within(set, from, to))
  const others = [...within(set, 0, 0x1f), ...within(set, 0x22, 0x22), ...within(set, 0x5c, 0x5c)]
  const texts = alone.length > 0 ? [characterClass(alone)] : []
  for (const [from, to] of others)
    for (let point = from; point <= to; point++) texts.push(literal(JSON.stringify(String.fromCodePoint(point)).slice(1, -1)))
  return `(${texts.join(' | ')})`
}

export function numberRule(schema: Schema, whole: boolean, { rules, path }: Context): string {
  const bound = (key: string, none: number): number => {
    const value = schema[key] ?? none
    if (typeof value === 'number' && (value === 0 || Math.abs(value) >= 1e-6)) return value
    throw refuse(path, `has ${key} ${JSON.stringify(value)}`, 'expected a number, 0 or at least 0.000001 from it')
  }
  if (schema.multipleOf !== undefined && !(whole && schema.multipleOf === 1)) {
    throw refuse(path, `has multipleOf ${JSON.stringify(schema.multipleOf)}`, "which cannot be held; there is type 'integer'")
  }
  const [above, below] = [bound('exclusiveMinimum', -infinite), bound('exclusiveMaximum', infinite)]
  let [least, greatest] = [Math.max(bound('minimum', -infinite), above), Math.min(bound('maximum', infinite), below)]
  if (least === -infinite && greatest === infinite) return basic(whole ? 'integer' : 'number', rules)
  let [openBelow, openAbove] = [least === above, greatest === below]
  if (whole) {
    least = openBelow ? Math.floor(least) + 1 : Math.ceil(least)
    greatest = openAbove ? Math.ceil(greatest) - 1 : Math.floor(greatest)
    openBelow = openAbove = false
  }
  const body = numbers({ least, greatest, above: openBelow, below: openAbove }, whole, text => rules.add(text))
  if (body === undefined) throw refuse(path, 'allows no number', 'of those with at most 15 digits before the point')
  return body
}

function count(schema: Schema, key: string, path: string): number | undefined {
  const value = schema[key]
  if (value === undefined || (Number.isSafeInteger(value) && (value as number) >= 0)) return value as number | undefined
  throw refuse(`${path}/${key}`, `is ${JSON.stringify(value)}`, 'expected a whole number from 0 on')
}
