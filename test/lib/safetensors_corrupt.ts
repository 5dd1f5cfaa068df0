// Safetensors files that are wrong in one way each, with the error that each must give.
import { Buffer } from 'node:buffer'
import { a, counting, dtypeBits, file, manyEntries, manyMembers, member, type NamedFile } from './safetensors_files.ts'

export interface CorruptFile extends NamedFile {
  code: string
  /** What the message has to mention, next to the file. */
  says: string
}

/** Files that are wrong in one way each, with the code of the error. */
export function corruptFiles(): CorruptFile[] {
  const files: CorruptFile[] = []
  const add = (kind: string, name: string, bytes: Buffer, says: string) =>
    files.push({ name: `${kind} ${files.length}: ${name}`, bytes, code: `ERR_SAFETENSORS_${kind}`, says })
  /** Headers, in front of two bytes of data. */
  const headers = (kind: string, says: string, texts: readonly string[], header = (text: string) => text) => {
    for (const text of texts) add(kind, text.slice(0, 80), file(header(text), 2), says)
  }
  const good = a('[2]', '[0,2]')
  const other = member('b', 'U8', '[2]', '[0,2]')

  // The first eight bytes.
  for (let n = 0; n < 8; n++) add('HEADER_TOO_SMALL', `${n} bytes`, counting(n), `found ${n}`)
  for (const length of [
    100_000_001n,
    1n << 31n,
    1n << 32n,
    (1n << 53n) + 1n,
    (1n << 63n) - 1n,
    1n << 63n,
    (1n << 64n) - 8n,
    (1n << 64n) - 1n,
  ])
    add('HEADER_TOO_LARGE', `length ${length}`, file(good, 2, length), `${length}`)
  const foreign: [string, string][] = [
    ['version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'git lfs pull'],
    ['GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0', 'GGUF'],
    ['PK\x03\x04\0\0\b\b\0\0\0\0', 'PyTorch'],
    ['<!DOCTYPE html><html></html>', 'web page'],
    ['<html><body>404</body></html>', 'web page'],
    ['<?xml version="1.0"?><Error/>', 'web page'],
    ['{"error":"Repository not found"}', 'download it again'],
    [' '.repeat(64), 'download it again'],
    ['\xff'.repeat(64), 'download it again'],
  ]
  for (const [text, says] of foreign) add('HEADER_TOO_LARGE', says, Buffer.from(text, 'latin1'), says)
  for (const length of [0, good.length + 3, good.length + 8, 65_536, 99_999_999, 100_000_000])
    add('HEADER_LENGTH', `length ${length}`, file(good, 2, length), `${length}`)
  add('HEADER_LENGTH', 'only a length', file('', 0, 1), '1')
  add('HEADER_LENGTH', 'eight zeros', Buffer.alloc(8), 'length of 0')
  add('HEADER_LENGTH', 'zeros', Buffer.alloc(4096), 'length of 0')
  for (let n = 8; n < 8 + good.length; n += 5)
    add('HEADER_LENGTH', `cut at ${n}`, file(good, 2).subarray(0, n), `the file has ${n}`)

  // UTF-8.
  const invalid = '80 bf c0 c080 c1bf c2 c241 e08080 e09fbf e2 e282 e28241 eda080 edbfbf f0808080'.split(' ')
  invalid.push('f08fbfbf', 'f09f', 'f09f99', 'f09f9941', 'f4908080', 'f5808080', 'f888808080', 'fc8480808080', 'fe', 'ff', 'fffe')
  for (const hex of invalid) {
    const bytes = Buffer.from(hex, 'hex').toString('latin1')
    add('HEADER_UTF8', `${hex} in a name`, file(Buffer.from(good.replace('a', bytes), 'latin1'), 2), 'UTF-8 at its byte 2')
  }
  add('HEADER_UTF8', 'in the padding', file(Buffer.from(`${good} \xa0`, 'latin1'), 2), 'UTF-8')
  add('HEADER_UTF8', 'first', file(Buffer.from(`\xff${good}`, 'latin1'), 2), 'byte 0')
  add('HEADER_UTF8', 'UTF-16', file(Buffer.from(`\ufeff${good}`, 'utf16le'), 2), 'UTF-8')

  // JSON.
  headers('HEADER_JSON', "begin with '{'", [
    ` ${good}`,
    `\n${good}`,
    `\ufeff${good}`,
    `[${good}]`,
    '"{}"',
    '1',
    'null',
    'a',
    '}',
    '\0{}',
    '(',
    '日',
  ])
  for (let n = 1; n < good.length; n += 2) add('HEADER_JSON', `${n} characters`, file(good.slice(0, n), 2), 'the end')
  const garbage = ['x', '}', '{}', ',', '\n', '\t', '\r\n', '\0', ' x', ' \n ', '\ufeff', good, '//', 'PK\x03\x04', '<?php ?>']
  headers('HEADER_JSON', 'nothing but spaces', garbage, text => good + text)
  const escapes = '\\ \\x \\u \\u1 \\u123 \\u123g \\U0041 \\ud800 \\ud800x \\ud800\\n \\ud800\\u0041 \\ud800\\ud800'.split(' ')
  escapes.push(
    '\\udc00',
    '\\udfff\\ud800',
    '\\ud800\\ue000',
    "\\'",
    '\\0',
    '\\v',
    '\\u 041',
    '\\u+041',
    '\\u-041',
    '\n',
    '\t',
    '\0',
    '\x1f',
    '"',
  )
  headers('HEADER_JSON', 'expected', escapes, text => `{"${text}":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}`)
  const numbers = "02|00|+2|.2|2.|2e|2e+|-|--2|0x2|2_0|2L|٢|NaN|Infinity|nul|True|'2'|2 2".split('|')
  headers('HEADER_JSON', 'expected', numbers, text => a(`[${text}]`, '[0,2]'))
  headers('HEADER_JSON', 'expected', [
    '{,}',
    '{{}}',
    '{"a"}',
    '{"a":}',
    '{"a",1}',
    '{a:1}',
    "{'a':1}",
    '{1:1}',
    '{null:1}',
    '{"a":undefined}',
    '{/**/}',
    '{"a"=1}',
    `{${member('a', 'U8', '[2]', '[0,2]')},}`,
    `{${member('a', 'U8', '[2]', '[0,2]')} ${other}}`,
    `{,${member('a', 'U8', '[2]', '[0,2]')}}`,
    `{${member('a', 'U8', '[2]', '[0,2]')},,${other}}`,
    `{${member('a', 'U8', '[2]', '[0,2]')};${other}}`,
    a('[2,]', '[0,2]'),
    a('[,2]', '[0,2]'),
    a('[1,,2]', '[0,2]'),
    a('[1 2]', '[0,2]'),
    a('[2}', '[0,2]'),
    a('[2]', '[0,2'),
    a('[2]', '[0:2]'),
    a('(2)', '[0,2]'),
    '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],}}',
    '{"a":{"dtype":"U8" "shape":[2],"data_offsets":[0,2]}}',
    '{"__metadata__":{"a":"b",}}',
    '{"__metadata__":{"a" "b"}}',
    '{'.repeat(1_000_000),
    `{"${'\\"'.repeat(500_000)}`,
  ])

  // Keys and fields.
  headers('DUPLICATE_KEY', 'twice', [
    `{${member('a', 'U8', '[2]', '[0,2]')},${member('a', 'U8', '[2]', '[0,2]')}}`,
    `{${member('a', 'U8', '[1]', '[0,1]')},${other},${member('a', 'U8', '[1]', '[1,2]')}}`,
    `{${member('a', 'U8', '[1]', '[0,1]')},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`,
    `{"é":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u00e9":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`,
    `{"\u{1f999}":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\ud83e\\uDD99":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`,
    `{${member('', 'U8', '[1]', '[0,1]')},${member('', 'U8', '[1]', '[1,2]')}}`,
    `{${member('a', 'U8', '[0]', '[0,0]')},${member('a', 'U8', '[2]', '[0,2]')}}`,
    '{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    '{"a":{"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2]}}',
    '{"a":{"dtype":"U8","shape":[],"shape":[2],"data_offsets":[0,2]}}',
    '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"data_offsets":[0,2]}}',
    '{"a":{"dtype":"U8","\\u0064type":"U8","shape":[2],"data_offsets":[0,2]}}',
    `{"__metadata__":{},"__metadata__":{},${other}}`,
    `{"__metadata__":{},${other},"__metadata__":{}}`,
    `{"__metadata__":{"x":"1","x":"1"},${other}}`,
    `{"__metadata__":{"x":"1","y":"2","\\u0078":"3"},${other}}`,
  ])
  const values = ['1', 'null', 'true', 'false', '[]', '{}', '["x"]', '-1.5e3']
  headers('METADATA', '__metadata__: "x"', values, value => `{"__metadata__":{"x":${value}},${other}}`)
  headers(
    'METADATA',
    '__metadata__',
    ['1', 'null', 'true', '[]', '"x"', '[["a","b"]]'],
    value => `{"__metadata__":${value},${other}}`,
  )
  headers('METADATA', '16384', [`{"__metadata__":{${manyEntries(16_385)}}}`])
  headers('FIELD', 'tensor "a"', [
    ...['1', 'null', 'true', '[]', '"x"', '-1', '[0,2]'].map(value => `{"a":${value}}`),
    `{"a":${'['.repeat(1_000_000)}`,
  ])
  headers('FIELD', 'dtype', ['{"a":{}}', '{"a":{"shape":[2],"data_offsets":[0,2]}}'])
  headers('FIELD', 'shape', ['{"a":{"dtype":"U8","data_offsets":[0,2]}}'])
  headers('FIELD', 'data_offsets', ['{"a":{"dtype":"U8","shape":[2]}}'])
  const unknown = '|x|DType|dtype |Shape|offsets|data_offset|__metadata__|__proto__|dtype\0|strides|é'.split('|')
  headers('FIELD', 'unknown field', unknown, field => good.replace('"dtype"', `${JSON.stringify(field)}:1,"dtype"`))
  headers('FIELD', 'unknown field', [
    `${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`,
    good.replace('"shape"', `"${'s'.repeat(100_000)}":1,"shape"`),
  ])
  const dtypes = '|u8|U8 | U8|U9|F|F31|f32|FP16|bf16|INT8|Q4_0|float32|torch.bfloat16|U8\0|É'.split('|')
  dtypes.push('x'.repeat(10_000))
  headers('DTYPE', 'tensor "a": dtype', dtypes, dtype => a('[2]', '[0,2]', dtype))
  headers('DTYPE', 'a string', ['1', 'null', 'true', '[]', '{}', '["U8"]'], dtype => good.replace('"U8"', dtype))

  // Shapes and offsets.
  const wrong = '-1 -0 2.0 0.5 2e0 1E2 -1e400 -18446744073709551616 "2" null true [] {} [2]'.split(' ')
  headers('SHAPE', 'tensor "a": shape', wrong, value => a(`[${value}]`, '[0,2]'))
  headers('SHAPE', 'tensor "a": shape', ['2', '"[2]"', 'null', '{}', '{"0":2}', 'true'], shape => a(shape, '[0,2]'))
  headers('SHAPE', 'at most 8', [a('[1,1,1,1,1,1,1,1,2]', '[0,2]'), a(`[${'1,'.repeat(100_000)}2]`, '[0,2]')])
  headers('SHAPE', 'an array', [a('['.repeat(1_000_000), '')])
  headers('SHAPE', 'inside a byte', [
    a('[3]', '[0,2]', 'F4'),
    a('[]', '[0,1]', 'F4'),
    a('[2]', '[0,2]', 'F6_E2M3'),
    a('[1,3]', '[0,2]', 'F6_E3M2'),
  ])
  headers(
    'OFFSETS',
    'data_offsets',
    wrong.flatMap(value => [a('[2]', `[${value},2]`), a('[2]', `[0,${value}]`)]),
  )
  headers('OFFSETS', 'data_offsets', ['[]', '[2]', '[0,2,2]', '[0,2,[]]', '2', '"0,2"', 'null', '{}', '{"begin":0}'], text =>
    a('[2]', text),
  )
  const backwards = ['[2,0]', '[1,0]', '[18446744073709551615,0]', '[9007199254740993,9007199254740992]']
  headers('OFFSETS', 'behind its end', backwards, text => a('[2]', text))
  const large = [
    `${1n << 64n}`,
    `${1n << 128n}`,
    '9'.repeat(1000),
    '1'.repeat(1_000_000),
    '18446744073709551620',
    '99999999999999999999',
  ]
  headers(
    'OVERFLOW',
    '2^64',
    large.flatMap(value => [a(`[${value}]`, '[0,2]'), a('[2]', `[${value},2]`), a('[2]', `[0,${value}]`)]),
  )
  headers('OVERFLOW', '2^63', [`${1n << 63n}`, `${(1n << 64n) - 1n}`], value => a(`[${value}]`, '[0,2]'))
  const products =
    '[9223372036854775807] [2305843009213693952] [4294967296,4294967296] [2,9223372036854775807] [3037000500,3037000500,4]'.split(
      ' ',
    )
  products.push(
    '[65536,65536,65536,65536]',
    '[4611686018427387904,8,0]',
    '[256,256,256,256,256,256,256,256]',
    '[4611686018427387905,4]',
  )
  headers('OVERFLOW', '2^64 bits', products, shape => a(shape, '[0,2]'))
  headers('OVERFLOW', '2^64 bits', [a('[288230376151711744]', '[0,0]', 'F64'), a('[1152921504606846977]', '[0,2]', 'BF16')])
  const sizes =
    '[0,0] [0,1] [0,3] [1,2] [0,18446744073709551615] [18446744073709551615,18446744073709551615] [0,9007199254740993]'.split(' ')
  headers('SIZE', 'need 2 bytes', sizes, offsets => a('[2]', offsets))
  headers('SIZE', 'need 9007199254740993 bytes', ['[0,9007199254740992]', '[0,9007199254740994]'], text =>
    a('[9007199254740993]', text),
  )
  headers('SIZE', 'need 0 bytes', [a('[0]', '[0,2]'), a('[2,0]', '[0,2]'), a('[0,2]', '[1,2]')])
  for (const [dtype, bits] of Object.entries(dtypeBits))
    for (const bytes of [bits - 1, bits + 1])
      add('SIZE', `${dtype} in ${bytes}`, file(a('[8]', `[0,${bytes}]`, dtype), bytes), `need ${bits} bytes`)

  // The layout. Each entry: the bytes of the data, then [begin, end] of each tensor.
  const layout = (kind: string, says: string, bytes: number, ...ranges: [bigint | number, bigint | number][]) => {
    const members = ranges.map(([begin, end], i) =>
      member(`t${i}`, 'U8', `[${BigInt(end) - BigInt(begin)}]`, `[${begin},${end}]`),
    )
    add(
      kind,
      ranges
        .slice(0, 4)
        .map(range => `[${range}]`)
        .join(' '),
      file(`{${members.join(',')}}`, bytes),
      says,
    )
  }
  const odd = (1n << 53n) + 1n
  layout('OVERLAP', '"t1" begins at 0', 4, [0, 4], [0, 4])
  layout('OVERLAP', '"t0" begins at 3', 8, [3, 8], [0, 4])
  layout('OVERLAP', '"t1" begins at 1', 8, [0, 8], [1, 2])
  layout('OVERLAP', '"t1" begins at 2', 4, [0, 4], [2, 2])
  layout('OVERLAP', '"t2" begins at 5', 9, [0, 4], [4, 6], [5, 9])
  layout('OVERLAP', `"t1" begins at ${odd - 1n}`, 4, [0, odd], [odd - 1n, odd + 4n])
  layout('OVERLAP', 'inside', 16, ...Array.from({ length: 16_384 }, (): [number, number] => [0, 16]))
  layout('HOLE', 'bytes 0 to 1', 4, [1, 4])
  layout('HOLE', 'bytes 0 to 4', 4, [4, 4])
  layout('HOLE', 'bytes 2 to 3', 8, [0, 2], [3, 8])
  layout('HOLE', 'bytes 2 to 4', 8, [4, 8], [0, 2])
  layout('HOLE', 'bytes 2 to 3', 2, [0, 2], [3, 3])
  layout('HOLE', `bytes ${odd - 1n} to ${odd}`, 4, [0, odd - 1n], [odd, odd + 4n])
  layout('HOLE', `bytes 2 to ${(1n << 64n) - 1n}`, 2, [0, 2], [(1n << 64n) - 1n, (1n << 64n) - 1n])
  for (const bytes of [0, 1, 7]) layout('TRUNCATED', `${8 - bytes} are missing`, bytes, [0, 4], [4, 8])
  layout('TRUNCATED', `${odd}`, 8, [0, odd])
  layout('TRUNCATED', `${odd}`, 8, [0, 8], [8, odd])
  layout('TRUNCATED', `${1n << 60n}`, 8, [0, 8], [8, 1n << 60n])
  layout('TRUNCATED', `${(1n << 61n) - 1n}`, 8, [0, (1n << 61n) - 1n])
  for (const bytes of [9, 16, 4096]) layout('TRAILING_BYTES', `the last ${bytes - 8}`, bytes, [0, 4], [4, 8])
  layout('TRAILING_BYTES', 'the last 2', 2, [0, 0])
  add('TRAILING_BYTES', 'no tensors', file('{}', 1), 'the last 1')
  add('TRAILING_BYTES', 'only metadata', file('{"__metadata__":{}}', 5), 'the last 5')
  add('TRAILING_BYTES', 'a zip behind', file(good, Buffer.from('abPK\x05\x06')), 'the last 4')
  add('TRAILING_BYTES', 'padding behind', file(good, Buffer.from('ab  ')), 'the last 2')
  add('TOO_MANY_TENSORS', '16385', file(`{${manyMembers(16_385)}}`, 16_385), '16384')
  add('TOO_MANY_TENSORS', '100000 on the same byte', file(`{${manyMembers(100_000, () => '[0,1]')}}`, 1), '16384')
  return files
}
