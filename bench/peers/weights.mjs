// Random weights without a model in memory: a value depends on its tensor, row and column alone, so that each file can be
// written in its own order.
import { tensors } from './shape.mjs'

const poolSize = 1 << 22
const segment = 64 // short enough that no two rows are ever equal

function hash(a, b) {
  let h = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(b + 0x7f4a7c15, 0xc2b2ae35)
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d)
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b)
  return (h ^ (h >>> 16)) >>> 0
}

const bits = new Uint32Array(1)
const float = new Float32Array(bits.buffer)

/** Round to nearest even. */
function toBf16(value) {
  float[0] = value
  return (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16
}

export function fromBf16(value) {
  bits[0] = value << 16
  return float[0]
}

let normals
function pool() {
  if (normals) return normals
  normals = new Uint16Array(poolSize + segment)
  for (let i = 0; i < poolSize; i += 2) {
    const radius = 0.02 * Math.sqrt(-2 * Math.log((hash(i, 1) + 1) / 2 ** 32))
    const angle = (2 * Math.PI * hash(i, 2)) / 2 ** 32
    normals[i] = toBf16(radius * Math.cos(angle))
    normals[i + 1] = toBf16(radius * Math.sin(angle))
  }
  normals.copyWithin(poolSize, 0, segment)
  return normals
}

/** One row of tensor number `index` as bf16: normal with deviation 0.02, norms around 1. */
function fillRow(tensor, index, row, out, at) {
  const source = pool()
  for (let column = 0; column < tensor.columns; column += segment) {
    const from = hash(index * 1048583 + row, column) % poolSize
    for (let i = 0; i < segment; i++) out[at + column + i] = source[from + i]
  }
  if (tensor.norm) for (let i = at; i < at + tensor.columns; i++) out[i] = toBf16(1 + fromBf16(out[i]))
}

/** Row r of q and k in llama.cpp's order (pairs next to each other) is this row of Hugging Face's (halves). */
const interleaved = (row, headDim) => row - (row % headDim) + ((row % headDim) >> 1) + (row % 2) * (headDim / 2)

/**
 * The bytes of every tensor, in blocks. `gguf`: rows of q and k interleaved, norms in float32.
 * A block is only good until the next one is asked for.
 */
export function* blocks(shape, gguf) {
  for (const [index, tensor] of tensors(shape).entries()) {
    const rowsPerBlock = Math.max(1, (4 << 20) / tensor.columns)
    const out = new Uint16Array(Math.min(rowsPerBlock, tensor.rows) * tensor.columns)
    for (let first = 0; first < tensor.rows; first += rowsPerBlock) {
      const rows = Math.min(rowsPerBlock, tensor.rows - first)
      for (let i = 0; i < rows; i++) {
        const row = gguf && tensor.rope ? interleaved(first + i, shape.headDim) : first + i
        fillRow(tensor, index, row, out, i * tensor.columns)
      }
      const block = gguf && tensor.norm ? Float32Array.from(out, fromBf16) : out.subarray(0, rows * tensor.columns)
      yield new Uint8Array(block.buffer, block.byteOffset, block.byteLength)
    }
  }
}
