/**
 * JSON Schema as EBNF: every text that the grammar takes is JSON that satisfies the schema. What cannot be held is refused,
 * never ignored. Where a schema leaves a choice of writing, the text has one line, keys in the order of the schema, at
 * most one space after a comma and a colon, and numbers of at most 15 digits: no model can go on for ever inside of one.
 * Pure; for the worker of grammar.ts.
 */
import { isDeepStrictEqual } from 'node:util'
import { InputError } from './errors.ts'
import { type GrammarLimits, literal } from './grammar_ebnf.ts'
import {
  arrayRule,
  basic,
  isType,
  keywords,
  numberRule,
  objectRule,
  Rules,
  refuse,
  type Schema,
  stringRule,
  type Type,
  types,
} from './grammar_types.ts'

/**
 * @throws InputError ERR_FORMAT_SCHEMA: not a schema, or something in it cannot be held; ERR_FORMAT_REGEX: a pattern;
 *   ERR_FORMAT_SIZE: over a limit
 */
export function schemaGrammar(schema: unknown, limits: GrammarLimits): string {
  return new Converter(schema, limits).convert()
}

/** Keywords that say what a value is in another way than by its type: one of them alone can be held. */
const forms = ['$ref', 'const', 'enum', 'anyOf', 'oneOf', 'allOf']
const impossible = [
  'not',
  'if',
  'then',
  'else',
  'dependentRequired',
  'dependentSchemas',
  'dependencies',
  'patternProperties',
].concat(['contains', 'minContains', 'maxContains', 'additionalItems', '$dynamicRef', '$recursiveRef'])
/** Whatever else a schema has says nothing about its values. */
const assertions = new Set([...impossible, ...forms, 'type', ...Object.values(keywords).flat()])

class Converter {
  readonly #root: unknown
  readonly #limits: GrammarLimits
  readonly #rules: Rules
  readonly #names = new Map<object, string>() // of the rules of schemas, which may not be written yet
  readonly #referred: (() => void)[] = [] // schemas whose rules are to be written

  constructor(root: unknown, limits: GrammarLimits) {
    this.#root = root
    this.#limits = limits
    this.#rules = new Rules(limits.rules)
  }

  convert(): string {
    const root = this.#schema(this.#root, '#', 0)
    for (let write = this.#referred.pop(); write; write = this.#referred.pop()) write()
    return this.#rules.text(root)
  }

  /** The name of the rule of a schema; that of one that is referred to is written later, from depth 0. */
  #schema(schema: unknown, path: string, depth: number, referred = false): string {
    if (schema === true) return basic('any', this.#rules)
    if (schema === false) throw refuse(path, 'is false', 'nothing satisfies it')
    if (!isType(schema, 'object')) throw refuse(path, 'is not an object or true')
    const known = this.#names.get(schema as object)
    if (known) return known
    if (depth > this.#limits.depth) {
      throw new InputError('ERR_FORMAT_SIZE', `the schema is more than ${this.#limits.depth} deep at ${path}; use $defs`)
    }
    const name = this.#rules.reserve()
    this.#names.set(schema as object, name)
    const write = () => this.#rules.define(name, this.#body(schema as Schema, path, referred ? 0 : depth))
    if (referred) this.#referred.push(write)
    else write()
    return name
  }

  #body(schema: Schema, path: string, depth: number): string {
    const keys = Object.keys(schema).filter(key => assertions.has(key))
    const no = keys.find(key => impossible.includes(key))
    if (no) throw refuse(path, `has '${no}'`, 'which cannot be held')
    if (schema.$id !== undefined && schema !== this.#root) throw refuse(path, 'has $id', 'which only the outermost schema may')
    const form = keys.find(key => forms.includes(key))
    if (form === undefined) {
      const bodies = this.#types(schema, keys, path).map(type => this.#typed(type, schema, path, depth))
      return bodies.length === 1 ? bodies[0]! : bodies.map(body => this.#rules.add(body)).join(' | ')
    }
    const beside = keys.find(key => key !== form && !(key === 'type' && (form === 'enum' || form === 'const')))
    if (beside) throw refuse(path, `has ${beside} beside ${form}`, 'both cannot be held; make one schema of them')
    const value = schema[form]
    if (form === '$ref') return this.#schema(this.#resolve(value, path), String(value), 0, true)
    if (form === 'const') return this.#values([value], schema, path)
    if (!Array.isArray(value)) throw refuse(`${path}/${form}`, 'is not an array')
    if (form === 'enum') return this.#values(value, schema, path)
    const alternatives = value.filter(alternative => alternative !== false)
    if (alternatives.length === 0) throw refuse(`${path}/${form}`, 'has no schema', 'nothing satisfies it')
    if (form === 'allOf' && value.length > 1) throw refuse(path, 'has several schemas in allOf', 'make one schema of them')
    if (form === 'oneOf') this.#exclusive(alternatives, path)
    return alternatives.map((alternative, i) => this.#schema(alternative, `${path}/${form}/${i}`, depth + 1)).join(' | ')
  }

  #typed(type: Type, schema: Schema, path: string, depth: number): string {
    const inner = (value: unknown, at: string) => this.#schema(value, `${path}/${at}`, depth + 1)
    const context = { rules: this.#rules, limits: this.#limits, path, inner }
    if (type === 'object') return objectRule(schema, context)
    if (type === 'array') return arrayRule(schema, context)
    if (type === 'string') return stringRule(schema, context)
    if (type === 'number' || type === 'integer') return numberRule(schema, type === 'integer', context)
    return basic(type, this.#rules)
  }

  /** Without a type, that which the keywords speak of. */
  #types(schema: Schema, keys: readonly string[], path: string): readonly Type[] {
    if (schema.type === undefined) {
      const kind = Object.entries(keywords).find(([, words]) => keys.some(key => words.includes(key)))
      return kind ? [kind[0] as Type] : types.filter(type => type !== 'integer')
    }
    const given = (Array.isArray(schema.type) ? schema.type : [schema.type]) as Type[]
    const wrong = given.find(type => !types.includes(type))
    if (wrong === undefined && given.length > 0) return given
    throw refuse(path, `has type ${JSON.stringify(wrong ?? given)}`, `expected ${types.join(', ')}`)
  }

  #values(values: readonly unknown[], schema: Schema, path: string): string {
    const allowed = schema.type === undefined ? types : this.#types(schema, [], path)
    const fitting = values.filter(value => allowed.some(type => isType(value, type)))
    if (fitting.length === 0) throw refuse(path, 'allows no value')
    return [...new Set(fitting.map(value => literal(JSON.stringify(value))))].join(' | ')
  }

  #resolve(ref: unknown, path: string): unknown {
    const refused = (why: string) => refuse(path, `has $ref ${JSON.stringify(ref)}`, why)
    if (typeof ref !== 'string' || !/^#(\/|$)/.test(ref)) {
      throw refused('only places in the schema itself can be referred to, as #/$defs/name')
    }
    let found: unknown = this.#root
    for (const part of ref.split('/').slice(1)) {
      const key = decode(part).replaceAll('~1', '/').replaceAll('~0', '~')
      if (typeof found !== 'object' || found === null || !Object.hasOwn(found, key)) throw refused('which is not in the schema')
      found = (found as Schema)[key]
    }
    return found
  }

  /** No text may satisfy two of the alternatives of oneOf. */
  #exclusive(alternatives: readonly unknown[], path: string): void {
    for (const [i, one] of alternatives.entries()) {
      if (alternatives.slice(0, i).every(other => this.#apart(one, other, path, true))) continue
      const way = 'use anyOf, or give each a required property with a const of its own'
      throw refuse(path, 'has alternatives in oneOf that a value may satisfy at once', way)
    }
  }

  /** Whether the types of two schemas, their values or, `inside`, one of their properties keep them apart. */
  #apart(a: unknown, b: unknown, path: string, inside: boolean): boolean {
    const [one, other] = [this.#deref(a, path), this.#deref(b, path)]
    const [these, those] = [listed(one), listed(other)]
    if (these && those) return !these.some(value => those.some(same => isDeepStrictEqual(value, same)))
    const typesOf = (schema: Schema): readonly Type[] => {
      const all = listed(schema)?.flatMap(value => types.filter(type => isType(value, type))) ?? this.#types(schema, [], path)
      return all.map(type => (type === 'integer' ? 'number' : type))
    }
    const left = typesOf(one)
    const common = typesOf(other).filter(type => left.includes(type))
    if (common.some(type => type !== 'object') || !inside) return common.length === 0
    const [mine, yours] = [one.properties, other.properties].map(Object) as [Schema, Schema]
    const required = [one.required, other.required].filter(Array.isArray).flat()
    const both = Object.keys(mine).filter(name => Object.hasOwn(yours, name) && required.includes(name))
    return common.length === 0 || both.some(name => this.#apart(mine[name], yours[name], path, false))
  }

  #deref(schema: unknown, path: string): Schema {
    let found = Object(schema) as Schema
    for (let i = 0; found.$ref !== undefined && i < this.#limits.depth; i++) found = Object(this.#resolve(found.$ref, path))
    return found
  }
}

/** The values of a schema that lists them. */
function listed(schema: Schema): readonly unknown[] | undefined {
  if (Array.isArray(schema.enum)) return schema.enum
  return Object.hasOwn(schema, 'const') ? [schema.const] : undefined
}

/** A part of a reference as it was before it was written as part of a URI. */
function decode(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}
