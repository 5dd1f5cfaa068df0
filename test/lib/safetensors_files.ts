// Safetensors files for tests: from tensors, from any parts, and a table of valid ones. safetensors_corrupt.ts has the others.
import { Buffer } from 'node:buffer'

export interface TensorData {
  name: string
  dtype: string
  shape: readonly number[]
  data: Uint8Array
}

export interface FileOptions {
  metadata?: Readonly<Record<string, string>>
  /** The data begins at a multiple of this many bytes (default 8), plus `shift`. */
  alignment?: number
  shift?: number
}

export interface NamedFile {
  name: string
  bytes: Buffer
}

/** A file as a writer makes it: the tensors in their order, the header padded with spaces. */
export function safetensors(tensors: readonly TensorData[], options: FileOptions = {}): Buffer {
  const { metadata, alignment = 8, shift = 0 } = options
  const members: string[] = metadata ? [`"__metadata__":${JSON.stringify(metadata)}`] : []
  let end = 0
  for (const { name, dtype, shape, data } of tensors) {
    members.push(member(name, dtype, `[${shape.join(',')}]`, `[${end},${end + data.length}]`))
    end += data.length
  }
  const header = Buffer.from(`{${members.join(',')}}`)
  const padding = (alignment - ((8 + header.length) % alignment)) % alignment
  const data = Buffer.concat(tensors.map(tensor => tensor.data))
  return file(Buffer.concat([header, Buffer.alloc(padding + shift, ' ')]), data)
}

/** A file from its parts, with any header and any length in front of it. */
export function file(header: string | Uint8Array, data: number | Uint8Array = 0, length?: number | bigint): Buffer {
  const text = Buffer.from(header)
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt(length ?? text.length))
  return Buffer.concat([prefix, text, typeof data === 'number' ? counting(data) : data])
}

/** Bytes 0, 1, 2, ... */
export function counting(bytes: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: bytes }, (_, i) => i))
}

/** One tensor of a header. shape and offsets are JSON texts, so that they can be anything. */
export function member(name: string, dtype: string, shape: string, offsets: string): string {
  return `${JSON.stringify(name)}:{"dtype":${JSON.stringify(dtype)},"shape":${shape},"data_offsets":${offsets}}`
}

/** The format's types by the bits of an element. */
export const dtypeBits: Readonly<Record<string, number>> = Object.fromEntries(
  [
    [4, 'F4'],
    [6, 'F6_E2M3 F6_E3M2'],
    [8, 'BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E5M2FNUZ F8_E4M3FNUZ'],
    [16, 'I16 U16 F16 BF16'],
    [32, 'I32 U32 F32'],
    [64, 'F64 I64 U64 C64'],
  ].flatMap(([bits, names]) =>
    String(names)
      .split(' ')
      .map(name => [name, Number(bits)]),
  ),
)

/** A header with one tensor. */
export const a = (shape: string, offsets: string, dtype = 'U8') => `{${member('a', dtype, shape, offsets)}}`

export function validFiles(): NamedFile[] {
  const one: TensorData = { name: 'a', dtype: 'F32', shape: [2, 3], data: counting(24) }
  const two: TensorData = { name: 'b', dtype: 'BF16', shape: [4], data: counting(8) }
  const none: TensorData = { name: 'z', dtype: 'F32', shape: [3, 0], data: counting(0) }
  const names = [
    '',
    ' ',
    '"',
    '\\',
    '\u0000',
    '\n',
    'é',
    '模型',
    '\u{1f999}',
    '__proto__',
    'x'.repeat(100_000),
    '\u2028',
    '../../etc',
  ]
  const files: [string, Buffer][] = [
    ['two tensors', safetensors([one, two])],
    ['no tensor', safetensors([])],
    ['no tensor, no padding', file('{}')],
    ['metadata', safetensors([one], { metadata: { format: 'pt', 'ü"\n': '{"a":[1]}' } })],
    ['empty metadata', safetensors([one], { metadata: {} })],
    ['only metadata', safetensors([], { metadata: { format: 'pt' } })],
    ['metadata last', file(`{${member('a', 'U8', '[1]', '[0,1]')},"__metadata__":{"format":"pt"}}`, 1)],
    ['scalar', file(a('[]', '[0,4]', 'F32'), 4)],
    ['zero-size tensor', safetensors([none])],
    ['zero-size tensor between others', safetensors([one, none, two])],
    ['zero-size tensor at the end', safetensors([one, two, none])],
    ['three zero-size tensors in one place', safetensors([none, { ...none, name: 'y' }, { ...none, name: 'x' }, one])],
    ['zero-size with a large dimension', file(a('[0,9223372036854775807]', '[0,0]'))],
    [
      'header in another order than the data',
      file(`{${member('b', 'U8', '[2]', '[3,5]')},${member('a', 'U8', '[3]', '[0,3]')}}`, 5),
    ],
    ['fields in another order', file('{"a":{"data_offsets":[0,2],"shape":[2],"dtype":"U8"}}', 2)],
    ['white space inside', file('{\n\t"a" : { "dtype" : "U8" ,\r\n "shape" : [ 1 , 2 ] , "data_offsets" : [ 0 , 2 ] } }   ', 2)],
    ['escaped field names', file('{"\\u0061":{"\\u0064type":"\\u00558","shape":[1],"data_offsets":[0,1]}}', 1)],
    ['surrogate pair', file('{"\\ud83e\\udd99":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1)],
    [
      'all escapes',
      file('{"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20ac\\u0000":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    ],
    [
      'a name of a field',
      safetensors([
        { ...one, name: 'dtype' },
        { ...two, name: 'data_offsets' },
      ]),
    ],
    ['odd header length', safetensors([one, two], { shift: 1 })],
    ['odd header length, bytes', file(`${a('[3]', '[0,3]')} `, 3)],
    ['data at a page', safetensors([one, two], { alignment: 4096 })],
    ['rank 8', file(a('[1,1,2,1,1,1,1,3]', '[0,6]'), 6)],
    ['16384 tensors', file(`{${manyMembers(16_384)}}`, 16_384)],
    ['16384 metadata entries', file(`{"__metadata__":{${manyEntries(16_384)}}}`)],
    ...Object.entries(dtypeBits).map(([dtype, bits]): [string, Buffer] => [dtype, file(a('[2,4]', `[0,${bits}]`, dtype), bits)]),
    ...names.map((name, i): [string, Buffer] => [`name ${i}`, safetensors([{ ...one, name }, two])]),
  ]
  return files.map(([name, bytes]) => ({ name: `valid: ${name}`, bytes }))
}

export const manyMembers = (count: number, offsets = (i: number) => `[${i},${i + 1}]`) =>
  Array.from({ length: count }, (_, i) => member(`${i}`, 'U8', '[1,1,1,1,1,1,1,1]', offsets(i))).join(',')
export const manyEntries = (count: number) => Array.from({ length: count }, (_, i) => `"${i}":""`).join(',')
