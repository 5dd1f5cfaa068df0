// Formats and the answers that they allow: every one satisfies the format, and what satisfies it can be said. The threads
// run what lib/grammar_worker.ts was compiled to.
import { afterAll, describe, expect, test } from '@jest/globals'
import type { Format } from '../../lib/grammar.ts'
import { allowed, demo, llama3, seeded, stops, Walker } from './grammar_walks.ts'

const walker = new Walker(demo)
const large = new Walker(llama3)
afterAll(async () => {
  await walker.grammars.close()
  await large.grammars.close()
})

type Schema = Readonly<Record<string, unknown>>

/** Whether a value satisfies a schema, for the keywords that the tests use. */
function satisfies(value: unknown, schema: unknown, root: unknown = schema): boolean {
  if (typeof schema === 'boolean') return schema
  const s = schema as Schema & Record<string, never>
  if (typeof s.$ref === 'string') {
    const path = (s.$ref as string).split('/').slice(1)
    return satisfies(
      value,
      path.reduce((at, key) => (at as Schema)[key.replace('~1', '/').replace('~0', '~')], root),
      root,
    )
  }
  const all = (list: unknown, holds: (item: never) => boolean) => list === undefined || (list as never[]).every(holds)
  const is = (type: string) =>
    type === 'integer'
      ? Number.isInteger(value)
      : type === 'array'
        ? Array.isArray(value)
        : type === 'null'
          ? value === null
          : type === 'object'
            ? typeof value === 'object' && value !== null && !Array.isArray(value)
            : typeof value === type
  const same = (other: unknown) => JSON.stringify(other) === JSON.stringify(value)
  if (s.type !== undefined && ![s.type].flat().some(is)) return false
  if (s.enum && !(s.enum as unknown[]).some(same)) return false
  if ('const' in s && !same(s.const)) return false
  const count = (list: unknown) => (list as unknown[]).filter(inner => satisfies(value, inner, root)).length
  if (s.anyOf && count(s.anyOf) === 0) return false
  if (s.oneOf && count(s.oneOf) !== 1) return false
  if (typeof value === 'number') {
    if (value < (s.minimum ?? value) || value > (s.maximum ?? value)) return false
    if (value <= (s.exclusiveMinimum ?? -Infinity) || value >= (s.exclusiveMaximum ?? Infinity)) return false
  }
  if (typeof value === 'string') {
    const length = [...value].length
    if (length < (s.minLength ?? 0) || length > (s.maxLength ?? Infinity)) return false
    if (s.pattern && !new RegExp(s.pattern, 'u').test(value)) return false
  }
  if (Array.isArray(value)) {
    const prefix = (s.prefixItems ?? []) as unknown[]
    if (value.length < (s.minItems ?? 0) || value.length > (s.maxItems ?? Infinity)) return false
    return value.every((item, i) => satisfies(item, prefix[i] ?? s.items ?? true, root))
  }
  if (!is('object')) return true
  const object = value as Schema
  const properties = (s.properties ?? {}) as Schema
  if (!all(s.required, name => Object.hasOwn(object, name))) return false
  return Object.entries(object).every(([name, inner]) => {
    if (s.propertyNames && !satisfies(name, s.propertyNames, root)) return false
    return satisfies(inner, Object.hasOwn(properties, name) ? properties[name] : (s.additionalProperties ?? true), root)
  })
}

const node = {
  type: 'object',
  properties: { value: { type: 'integer' }, next: { anyOf: [{ $ref: '#' }, { type: 'null' }] } },
  required: ['value', 'next'],
}
const shape = (kind: string, more: Schema) => ({
  type: 'object',
  properties: { kind: { const: kind }, ...more },
  required: ['kind'],
})

const schemas: Record<string, Schema | boolean> = {
  anything: true,
  'a person': {
    type: 'object',
    properties: {
      name: { type: 'string' },
      age: { type: 'integer', minimum: 0, maximum: 150 },
      emails: { type: 'array', items: { type: 'string' } },
    },
    required: ['name', 'age'],
  },
  'only optional properties': {
    properties: { a: { type: 'null' }, b: { type: 'boolean' }, c: { const: 3 } },
    additionalProperties: false,
  },
  'strange keys': {
    type: 'object',
    properties: { 'a"b': { type: 'null' }, '\\\n': { type: 'null' }, 'ключ 🔑': { type: 'null' } },
    required: ['\\\n'],
  },
  'a map': { type: 'object', additionalProperties: { type: 'number' }, propertyNames: { pattern: '^[a-z]+$' }, minProperties: 1 },
  values: { enum: ['dc', 'aab', 'aac', 'größe', '字', 1.5, null, { a: [true] }, 'a"\\\n'] },
  'values of a type': { enum: ['a', 1, null], type: ['string', 'null'] },
  'a list': { type: 'array', items: { type: 'boolean' }, minItems: 2, maxItems: 5 },
  'a long list': { type: 'array', items: { const: 1 }, minItems: 140, maxItems: 150 },
  'a tuple': { type: 'array', prefixItems: [{ type: 'string' }, { type: 'integer' }], items: { type: 'null' }, minItems: 1 },
  'a closed tuple': { type: 'array', prefixItems: [{ type: 'null' }, { type: 'boolean' }], items: false },
  'an empty list': { type: 'array', maxItems: 0 },
  'a linked list': node,
  'types by definition': { $defs: { 'a/b~c': { type: 'integer' } }, type: 'array', items: { $ref: '#/$defs/a~1b~0c' } },
  'one of several': {
    oneOf: [{ type: 'string' }, { type: 'integer' }, shape('circle', { r: { type: 'number' } }), shape('point', {})],
  },
  'a short text': { type: 'string', minLength: 2, maxLength: 4 },
  'a text that is not empty': { type: 'string', minLength: 1 },
  'a pattern': { type: 'string', pattern: '^[^a-y]{1,3}"?\\\\.*$' },
  'any characters': { type: 'string', pattern: '^[\\s\\S]{3,}$' },
  'a probability': { type: 'number', minimum: 0, maximum: 1 },
  'a number below': { type: 'number', exclusiveMaximum: -12.5 },
  'a number between': { type: 'number', exclusiveMinimum: -0.25, exclusiveMaximum: 3.125 },
  'an integer above': { type: 'integer', exclusiveMinimum: 99.5 },
  'an integer between': { type: 'integer', minimum: -1205, maximum: 98 },
  'safe integers': { type: 'integer', minimum: Number.MIN_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER },
}

describe('every answer satisfies the schema:', () => {
  test.each(Object.entries(schemas))('%s', async (_, schema) => {
    const random = seeded(1)
    const found = new Set<string>()
    for (let i = 0; i < 30; i++) {
      const text = await walker.walk({ type: 'jsonSchema', schema: JSON.stringify(schema) }, random)
      expect({ text, satisfies: satisfies(JSON.parse(text), schema) }).toEqual({ text, satisfies: true })
      found.add(text)
    }
    const text = await large.walk({ type: 'jsonSchema', schema: JSON.stringify(schema) }, random)
    expect({ text, satisfies: satisfies(JSON.parse(text), schema) }).toEqual({ text, satisfies: true })
    expect(found.size).toBeGreaterThanOrEqual(schema === schemas['an empty list'] ? 1 : 2)
  })
})

const iso = { type: 'string', format: 'date-time' }
const said: [schema: Schema | boolean, takes: unknown[], refuses: unknown[]][] = [
  [true, [null, -0.5, 1e21, [], {}, 'a\u2028\u{1f600}é"\\/\b\f\n\r\t\u0007', { a: { b: [1, [true]] } }], []],
  [{ type: 'string', maxLength: 3 }, ['', '字字字', '🔑🔑🔑', '\n"\\'], ['abcd']],
  [{ type: 'number', minimum: 0, maximum: 1 }, [0, 1, 0.5, 0.123456789], [-0.1, 1.1, 2, 10]],
  [{ type: 'number', exclusiveMinimum: 0 }, [0.001, 3, 123456], [0, -1]],
  [{ type: 'integer', minimum: 5, maximum: 1234 }, [5, 9, 10, 99, 100, 999, 1000, 1234], [4, 0, -5, 1235, 5000, 5.5]],
  [{ type: 'integer', maximum: -7 }, [-7, -10, -123456], [-6, 0, 7]],
  [
    { type: 'array', items: { const: 1 }, minItems: 130, maxItems: 132 },
    [Array(130).fill(1), Array(132).fill(1)],
    [Array(129).fill(1), Array(133).fill(1)],
  ],
  [{ type: 'array', prefixItems: [{ const: 1 }, { const: 2 }] }, [[], [1], [1, 2]], [[2], [1, 2, 3]]],
  [
    { properties: { a: { const: 1 }, b: { const: 2 } }, required: ['b'] },
    [{ a: 1, b: 2 }, { b: 2 }],
    [{}, { a: 1 }, { b: 2, a: 1 }, { b: 2, c: 3 }],
  ],
  [
    node,
    [
      { value: 1, next: null },
      { value: 1, next: { value: 2, next: null } },
    ],
    [null, { value: 1 }],
  ],
  [
    iso,
    ['2024-02-28T23:59:59Z', '1999-12-31T00:00:00.123+05:30'],
    ['2024-02-30T00:00:00Z', '2024-01-01T24:00:00Z', '2024-01-01'],
  ],
  [{ type: 'string', format: 'email' }, ['a.b+c@example.org'], ['a@b', '@example.org', 'a b@c.de']],
  [{ type: 'string', format: 'uuid' }, ['123e4567-e89b-12d3-a456-426614174000'], ['123e4567e89b12d3a456426614174000']],
  [{ type: 'string', format: 'ipv4' }, ['0.0.0.0', '255.10.199.1'], ['256.1.1.1', '1.1.1']],
  [{ type: 'string', format: 'duration' }, ['P1Y2M3DT4H5M6S', 'PT1M', 'P3W'].slice(1), ['P', 'PT', '1D']],
  [{ type: 'string', format: 'uri' }, ['https://example.org/a?b=c#d', 'mailto:a@b.c'], ['example.org', 'http://a b']],
]

test.each(said)('%j', async (schema, takes, refuses) => {
  for (const value of [...takes, ...refuses]) {
    const taken = await walker.takes({ type: 'jsonSchema', schema: JSON.stringify(schema) }, JSON.stringify(value))
    expect({ value, taken }).toEqual({ value, taken: takes.includes(value) })
  }
})
describe('regular expressions mean what they mean in JavaScript:', () => {
  const patterns = [
    '^a(b|c)*d$',
    '[^a-z]{2}',
    '\\d{1,3}(\\.\\d+)?',
    '.x.',
    '\\S\\s\\S',
    '[\\u{400}-\\u{4ff}é字]{2,}',
    '(?<name>äh?)+|',
    '\\p{Lu}\\P{L}',
  ].concat([
    '[\\w.-]+@\\x41\\u0042\\cJ',
    '(ab|ac|dc)x',
    '(?:dc|aab|aac)|.|a.b',
    '^a$|^bb?$',
    '(a|[ab]c)*?b',
    '((a{2}){2,}|){0,1}',
    '[\\]\\\\-]',
    '\\u{1f600}?🔑',
    '[a-f]{130,140}',
  ])
  test.each(patterns)('%s', async pattern => {
    const random = seeded(2)
    const whole = new RegExp(`^(?:${pattern})$`, 'u')
    const letters = [...'aabbcdxé字🔑Ы .\n\\-']
    const texts = Array.from({ length: 40 }, () =>
      Array.from({ length: random(5) }, () => letters[random(letters.length)]).join(''),
    )
    texts.push('\n', '\u2028', 'a\nb')
    for (let i = 0; i < 20; i++) {
      const text = await walker.walk({ type: 'regex', pattern }, random, 8)
      expect({ text, matches: whole.test(text) }).toEqual({ text, matches: true })
      texts.push(text, `${text}a`, text.slice(1))
    }
    for (const text of texts)
      expect({ text, taken: await walker.takes({ type: 'regex', pattern }, text) }).toEqual({ text, taken: whole.test(text) })
  })

  test('thousands of texts with random ones', async () => {
    const random = seeded(3)
    const pick = (...of: string[]) => of[random(of.length)]!
    const some = (depth: number): string => {
      if (depth === 0) return pick('a', 'b', 'c', 'ab', 'ca', 'bcb', '[ab]', '[^a]', '[bc]')
      const inner = () => some(random(depth))
      return pick(
        `(?:${inner()}|${inner()}|${inner()})`,
        `${inner()}${inner()}`,
        `(${inner()})${pick('*', '+', '?', '{2}', '{1,3}', '{2,}')}`,
      )
    }
    let taken = 0
    for (let i = 0; i < 60; i++) {
      const pattern = some(3)
      const whole = new RegExp(`^(?:${pattern})$`)
      for (let j = 0; j < 40; j++) {
        const text = Array.from({ length: random(6) }, () => pick('a', 'b', 'c')).join('')
        const found = await walker.takes({ type: 'regex', pattern }, text)
        expect({ pattern, text, found }).toEqual({ pattern, text, found: whole.test(text) })
        taken += Number(found)
      }
    }
    expect(taken).toBeGreaterThan(200)
  })
})
describe('grammars:', () => {
  const [a10, z8] = ['a'.repeat(10), 'z'.repeat(8)]
  const grammars: [name: string, grammar: string, takes: string[], refuses: string[]][] = [
    ['alternatives that begin and end alike', 'root ::= "dc" | "aab" | "aac"', ['dc', 'aab', 'aac'], ['db', 'aa', 'dcb']],
    [
      'alternatives with names that begin and end alike',
      `root ::= one | two\none ::= "dc${z8}" | "${a10}b${z8}"\ntwo ::= "${a10}c${z8}"`,
      [`dc${z8}`, `${a10}b${z8}`, `${a10}c${z8}`],
      [`db${z8}`, `d${z8}`],
    ],
    ['recursion', 'root ::= "(" root ")" root | ""', ['', '()', '(())()'], ['(', ')(', '(()']],
    ['left recursion', 'root ::= root "+" term | term\nterm ::= [0-9]+', ['1', '1+23+4'], ['+1', '1+', '']],
    ['ambiguity', 'root ::= "a" | root root', ['a', 'aaaaa'], ['', 'ab']],
    [
      'classes',
      'root ::= [^"\\\\\\n]{0,4} [а-яё] [\\u0041-\\U00000043\\]\\-]',
      ['字ёA', 'я]', 'xжC-ж-'],
      ['"яA', 'яD', 'zA', 'я'],
    ],
    [
      'repetitions',
      'root ::= "ab"{2} [c-d]{1,2} ("e" "f"){2,} # two\n  "g"? "é"*',
      ['ababcefef', 'ababcdefefefgéé'],
      ['abcefef', 'ababcdcefef', 'ababcef'],
    ],
    [
      'long repetitions',
      'root ::= ("ab" | "c"){130,131}',
      ['c'.repeat(130), 'ab'.repeat(131)],
      ['c'.repeat(129), 'ab'.repeat(132)],
    ],
    ['what has no end is left out', 'root ::= "a" | "b" endless\nendless ::= "c" endless', ['a'], ['b', 'bc']],
    ['escapes', 'root ::= "\\x41\\u00e9\\U0001F600\\t\\"\\\\" [\\x00-\\x1f]', ['Aé😀\t"\\\n', 'Aé😀\t"\\\0'], ['Aé😀\t"\\a']],
    ['names as xgrammar has them', 'root::=a-b.c_1 a-b.c_1\na-b.c_1::="x"|"y"', ['xy', 'yy'], ['x', 'xyx']],
  ]
  test.each(grammars)('%s', async (_, grammar, takes, refuses) => {
    const random = seeded(4)
    for (const text of [...takes, ...refuses])
      expect({ text, taken: await walker.takes({ type: 'grammar', grammar }, text) }).toEqual({
        text,
        taken: takes.includes(text),
      })
    for (let i = 0; i < 10; i++) {
      const text = await walker.walk({ type: 'grammar', grammar }, random, 200)
      expect({ text, taken: await walker.takes({ type: 'grammar', grammar }, text) }).toEqual({ text, taken: true })
    }
  })
})
test.each([
  ['demo', demo, walker],
  ['Llama 3', llama3, large],
] as const)('masks have all tokens that may come and no other: %s', async (_, tokenizer, { grammars }) => {
  const values = ['dc', 'aab', 'aac', 'größer als', 'grün', '字字母', '🔑 key', 'The house', 'The houses']
  const texts = values.map(value => Buffer.from(JSON.stringify(value)))
  for (const text of texts) {
    const matcher = await grammars.open({ type: 'jsonSchema', schema: { enum: values } })
    for (let at = 0; at <= text.length; ) {
      const rest = texts.filter(other => other.subarray(0, at).equals(text.subarray(0, at))).map(other => other.subarray(at))
      const fits = (bytes: Uint8Array) => bytes.length > 0 && rest.some(other => other.subarray(0, bytes.length).equals(bytes))
      const expected = Array.from({ length: tokenizer.size }, (_, id) => id).filter(id =>
        tokenizer.isSpecial(id) ? at === text.length && stops(tokenizer).includes(id) : fits(tokenizer.bytes(id)),
      )
      expect(allowed(matcher)).toEqual(expected)
      expect(matcher.ended).toBe(at === text.length)
      if (at === text.length) break
      // The longest token of this text, and once the first byte of a character of several.
      const ids = expected.filter(id => text.subarray(at).subarray(0, tokenizer.bytes(id).length).equals(tokenizer.bytes(id)))
      const id = ids.reduce((a, b) => (tokenizer.bytes(b).length > tokenizer.bytes(a).length === at % 2 > 0 ? b : a))
      await matcher.accept(id)
      at += tokenizer.bytes(id).length
    }
    matcher.dispose()
  }
})
test('masks have tokens that run past the end of a rule, into a character of several bytes', async () => {
  const grammar = 'root ::= "ab" x "é"\nx ::= [p-t] | "st"'
  const matcher = await large.grammars.open({ type: 'grammar', grammar })
  await matcher.accept(llama3.idOf('ab')!)
  const spelled = Array.from({ length: llama3.size }, (_, id) => Buffer.from(llama3.bytes(id)).toString('latin1'))
  const expected = [...spelled.keys()].filter(id => /^([p-t]|st)(\xc3\xa9?)?$/.test(spelled[id]!))
  expect(expected.filter(id => spelled[id]!.endsWith('\xa9')).length).toBeGreaterThanOrEqual(2)
  expect(allowed(matcher)).toEqual(expected)
})

const refused: [format: unknown, code: string, message: RegExp][] = [
  [undefined, 'ERR_FORMAT_TYPE', /json, jsonSchema, regex, grammar/],
  [{ type: 'xml' }, 'ERR_FORMAT_TYPE', /xml/],
  [{ type: 'json', schema: {} }, 'ERR_FORMAT_TYPE', /has no schema/],
  [{ type: 'regex', pattern: 7 }, 'ERR_FORMAT_TYPE', /pattern is 7/],
  [{ type: 'jsonSchema', schema: '{"type": }' }, 'ERR_FORMAT_SCHEMA', /not JSON/],
  [{ type: 'jsonSchema', schema: { a: 1n } }, 'ERR_FORMAT_SCHEMA', /BigInt/],
  [{ type: 'jsonSchema', schema: [] }, 'ERR_FORMAT_SCHEMA', /at # is not an object/],
  [{ type: 'regex', pattern: '(a' }, 'ERR_FORMAT_REGEX', /Unterminated group/],
  [{ type: 'regex', pattern: 'a(?=b)' }, 'ERR_FORMAT_REGEX', /an assertion/],
  [{ type: 'regex', pattern: 'a(?!b)' }, 'ERR_FORMAT_REGEX', /an assertion/],
  [{ type: 'regex', pattern: '(a)\\1' }, 'ERR_FORMAT_REGEX', /a back reference/],
  [{ type: 'regex', pattern: '\\bword' }, 'ERR_FORMAT_REGEX', /a word boundary/],
  [{ type: 'regex', pattern: 'a^b' }, 'ERR_FORMAT_REGEX', /\^ or \$/],
  [{ type: 'regex', pattern: '[]' }, 'ERR_FORMAT_REGEX', /a class without characters/],
  [{ type: 'regex', pattern: '.{3,1000}' }, 'ERR_FORMAT_SIZE', /up to 1000 times, expected at most 128/],
  [{ type: 'grammar', grammar: 'start ::= "a"' }, 'ERR_FORMAT_GRAMMAR', /no rule root/],
  [{ type: 'grammar', grammar: 'root ::= "a"\nroot ::= "b"' }, 'ERR_FORMAT_GRAMMAR', /defines root twice at line 2, column 1/],
  [{ type: 'grammar', grammar: 'root ::= a' }, 'ERR_FORMAT_GRAMMAR', /no rule a at line 1, column 10/],
  [{ type: 'grammar', grammar: 'root ::= "a' }, 'ERR_FORMAT_GRAMMAR', /cannot be read at line 1, column 10/],
  [{ type: 'grammar', grammar: 'root ::= ("a"' }, 'ERR_FORMAT_GRAMMAR', /\( without \)/],
  [{ type: 'grammar', grammar: 'root ::= "a")' }, 'ERR_FORMAT_GRAMMAR', /\) without \(/],
  [{ type: 'grammar', grammar: 'root ::= * "a"' }, 'ERR_FORMAT_GRAMMAR', /after nothing/],
  [{ type: 'grammar', grammar: 'root ::= [\\d]' }, 'ERR_FORMAT_GRAMMAR', /escape that is none, \\d/],
  [{ type: 'grammar', grammar: 'root ::= [z-a]' }, 'ERR_FORMAT_GRAMMAR', /ends before it begins/],
  [{ type: 'grammar', grammar: 'root ::= root' }, 'ERR_FORMAT_EMPTY', /no text/],
  [{ type: 'grammar', grammar: 'root ::= root "a"' }, 'ERR_FORMAT_EMPTY', /no text/],
  [{ type: 'jsonSchema', schema: { $ref: '#' } }, 'ERR_FORMAT_EMPTY', /no text/],
  [{ type: 'jsonSchema', schema: { properties: { a: { $ref: '#' } }, required: ['a'] } }, 'ERR_FORMAT_EMPTY', /no text/],
]
const schemasRefused: [schema: Schema | boolean, message: RegExp][] = [
  [{ not: { type: 'string' } }, /at # has 'not'/],
  [{ type: 'object', properties: { a: { if: {}, else: {} } } }, /at #\/properties\/a has 'if'/],
  [{ type: 'object', patternProperties: { a: {} } }, /has 'patternProperties'/],
  [{ type: 'array', contains: { type: 'null' } }, /has 'contains'/],
  [{ type: 'array', uniqueItems: true }, /has uniqueItems/],
  [{ type: 'array', items: [{}] }, /use prefixItems/],
  [{ type: 'array', minItems: 3, maxItems: 2 }, /minItems 3/],
  [{ allOf: [{ type: 'string' }, { minLength: 3 }] }, /several schemas in allOf/],
  [{ anyOf: [{ type: 'string' }], type: 'object' }, /has type beside anyOf/],
  [{ $ref: '#/$defs/a', minimum: 3 }, /has minimum beside \$ref/],
  [{ $ref: '#/$defs/a' }, /not in the schema/],
  [{ $ref: 'https://example.org/schema' }, /only places in the schema/],
  [{ oneOf: [{ type: 'integer' }, { type: 'number' }] }, /oneOf that a value may satisfy at once/],
  [{ oneOf: [shape('a', {}), { type: 'object', properties: { kind: { type: 'string' } } }] }, /may satisfy at once/],
  [{ type: 'decimal' }, /type "decimal"/],
  [{ enum: [1], type: 'string' }, /allows no value/],
  [{ anyOf: [false] }, /nothing satisfies it/],
  [{ type: 'string', pattern: 'a', maxLength: 3 }, /beside pattern/],
  [{ type: 'string', format: 'json-pointer' }, /format "json-pointer".*date-time/],
  [{ type: 'string', minLength: -1 }, /minLength is -1/],
  [{ type: 'number', multipleOf: 0.01 }, /multipleOf 0.01/],
  [{ type: 'number', minimum: 1e-9 }, /minimum 1e-9/],
  [{ type: 'integer', minimum: 1.2, maximum: 1.8 }, /allows no number/],
  [{ type: 'object', required: ['a'] }, /requires "a"/],
  [{ type: 'object', maxProperties: 3 }, /counts properties/],
]

test.each(
  refused.concat(schemasRefused.map(([schema, message]) => [{ type: 'jsonSchema', schema }, 'ERR_FORMAT_SCHEMA', message])),
)('%p is refused', async (format, code, message) => {
  await expect(walker.grammars.open(format as Format)).rejects.toMatchObject({
    name: 'InputError',
    code,
    message: expect.stringMatching(message),
  })
})
