// The header of a GGUF file (version 3) for our models: metadata and the table of tensors.
import { bos, eos, tensors } from './shape.mjs'

const type = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 }
const tensorType = { f32: 0, bf16: 30 }
const alignment = 32
const align = offset => Math.ceil(offset / alignment) * alignment

/** Little-endian values, as a list of buffers. */
class Writer {
  parts = []
  number(bytes, method, value) {
    const buffer = Buffer.alloc(bytes)
    buffer[method](value)
    this.parts.push(buffer)
  }
  u32 = value => this.number(4, 'writeUInt32LE', value)
  i32 = value => this.number(4, 'writeInt32LE', value)
  f32 = value => this.number(4, 'writeFloatLE', value)
  u64 = value => this.number(8, 'writeBigUInt64LE', BigInt(value))
  bool = value => this.number(1, 'writeUInt8', Number(value))
  string = value => {
    const bytes = Buffer.from(value)
    this.u64(bytes.length)
    this.parts.push(bytes)
  }
  pair(key, kind, value) {
    this.string(key)
    if (Array.isArray(value)) {
      this.u32(type.array)
      this.u32(type[kind])
      this.u64(value.length)
      for (const item of value) this[kind](item)
    } else {
      this.u32(type[kind])
      this[kind](value)
    }
  }
}

/** GPT-2's printable stand-ins for the 256 bytes. */
function byteTokens() {
  const printable = [
    [33, 126],
    [161, 172],
    [174, 255],
  ]
  let next = 256
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(printable.some(([from, to]) => byte >= from && byte <= to) ? byte : next++),
  )
}

/** A vocabulary that loads and is good for nothing else: all benchmarks use token ids. */
function vocabulary(shape) {
  const normal = Array.from({ length: bos(shape) - 256 }, (_, i) => `token${i + 256}`)
  const special = ['<|begin_of_text|>', '<|end_of_text|>', ...Array.from({ length: 254 }, (_, i) => `<|reserved_${i}|>`)]
  const tokens = [...byteTokens(), ...normal, ...special]
  const kinds = tokens.map((_, i) => (i < bos(shape) ? 1 : 3)) // normal, control
  return { tokens, kinds }
}

export function header(shape, name) {
  const { tokens, kinds } = vocabulary(shape)
  const metadata = [
    ['general.architecture', 'string', 'llama'],
    ['general.name', 'string', name],
    ['general.alignment', 'u32', alignment],
    ['general.file_type', 'u32', 32], // mostly bf16
    ['llama.block_count', 'u32', shape.layers],
    ['llama.context_length', 'u32', shape.context],
    ['llama.embedding_length', 'u32', shape.dim],
    ['llama.feed_forward_length', 'u32', shape.hidden],
    ['llama.attention.head_count', 'u32', shape.heads],
    ['llama.attention.head_count_kv', 'u32', shape.kvHeads],
    ['llama.attention.key_length', 'u32', shape.headDim],
    ['llama.attention.value_length', 'u32', shape.headDim],
    ['llama.attention.layer_norm_rms_epsilon', 'f32', shape.eps],
    ['llama.rope.dimension_count', 'u32', shape.headDim],
    ['llama.rope.freq_base', 'f32', shape.theta],
    ['llama.vocab_size', 'u32', shape.vocab],
    ['tokenizer.ggml.model', 'string', 'gpt2'],
    ['tokenizer.ggml.pre', 'string', 'llama-bpe'],
    ['tokenizer.ggml.tokens', 'string', tokens],
    ['tokenizer.ggml.token_type', 'i32', kinds],
    ['tokenizer.ggml.merges', 'string', ['t o']],
    ['tokenizer.ggml.bos_token_id', 'u32', bos(shape)],
    ['tokenizer.ggml.eos_token_id', 'u32', eos(shape)],
    ['tokenizer.ggml.add_bos_token', 'bool', false],
  ]
  const list = tensors(shape)
  const out = new Writer()
  out.parts.push(Buffer.from('GGUF'))
  out.u32(3)
  out.u64(list.length)
  out.u64(metadata.length)
  for (const pair of metadata) out.pair(...pair)
  let offset = 0
  for (const tensor of list) {
    out.string(tensor.gguf)
    out.u32(tensor.norm ? 1 : 2)
    out.u64(tensor.columns) // the fastest dimension first
    if (!tensor.norm) out.u64(tensor.rows)
    out.u32(tensor.norm ? tensorType.f32 : tensorType.bf16)
    out.u64(offset)
    offset = align(offset + tensor.rows * tensor.columns * (tensor.norm ? 4 : 2))
  }
  const bytes = Buffer.concat(out.parts)
  return Buffer.concat([bytes, Buffer.alloc(align(bytes.length) - bytes.length)])
}

export const padding = bytes => align(bytes) - bytes
