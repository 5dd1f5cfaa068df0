// The Llama forward pass on model.safetensors, in plain JavaScript (float32 weights, float64 sums): slow, and nobody's code but ours.
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fromBf16 } from './weights.mjs'

async function readTensors(folder) {
  const file = await readFile(join(folder, 'model.safetensors'))
  const start = 8 + Number(file.readBigUInt64LE())
  const table = JSON.parse(file.subarray(8, start).toString())
  return name => {
    const [from, to] = table[name].data_offsets
    return Float32Array.from({ length: (to - from) / 2 }, (_, i) => fromBf16(file.readUInt16LE(start + from + 2 * i)))
  }
}

const times = (weight, x) =>
  Float64Array.from({ length: weight.length / x.length }, (_, row) => {
    let sum = 0
    for (let i = 0; i < x.length; i++) sum += weight[row * x.length + i] * x[i]
    return sum
  })

const add = (x, y) => x.map((value, i) => value + y[i])

function rmsNorm(x, weight, eps) {
  const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + eps)
  return x.map((value, i) => value * scale * weight[i])
}

/** Hugging Face's layout: element i of a head turns with element i + half. */
function rope(x, position, { headDim, theta }) {
  const half = headDim / 2
  return x.map((value, at) => {
    const i = at % headDim
    const angle = position * theta ** (-(i % half) / half)
    return value * Math.cos(angle) + (i < half ? -x[at + half] : x[at - half]) * Math.sin(angle)
  })
}

function attention(q, keys, values, { heads, kvHeads, headDim }) {
  const out = new Float64Array(heads * headDim)
  for (let head = 0; head < heads; head++) {
    const kv = Math.floor((head * kvHeads) / heads) * headDim
    const scores = keys.map(key => {
      let sum = 0
      for (let i = 0; i < headDim; i++) sum += q[head * headDim + i] * key[kv + i]
      return sum / Math.sqrt(headDim)
    })
    const max = Math.max(...scores)
    const weights = scores.map(score => Math.exp(score - max))
    const total = weights.reduce((sum, weight) => sum + weight)
    for (let i = 0; i < headDim; i++) {
      out[head * headDim + i] = weights.reduce((sum, weight, t) => sum + weight * values[t][kv + i], 0) / total
    }
  }
  return out
}

const silu = x => x / (1 + Math.exp(-x))

/** A function from the next token to the logits after it. */
export async function reference(folder, shape) {
  const read = await readTensors(folder)
  const embedding = read('model.embed_tokens.weight')
  const finalNorm = read('model.norm.weight')
  const layers = Array.from({ length: shape.layers }, (_, n) => {
    const part = name => read(`model.layers.${n}.${name}.weight`)
    const [q, k, v, o] = ['q', 'k', 'v', 'o'].map(name => part(`self_attn.${name}_proj`))
    const [gate, up, down] = ['gate', 'up', 'down'].map(name => part(`mlp.${name}_proj`))
    return {
      q,
      k,
      v,
      o,
      gate,
      up,
      down,
      before: part('input_layernorm'),
      after: part('post_attention_layernorm'),
      keys: [],
      values: [],
    }
  })
  let position = 0
  return token => {
    let x = Float64Array.from(embedding.subarray(token * shape.dim, (token + 1) * shape.dim))
    for (const layer of layers) {
      const h = rmsNorm(x, layer.before, shape.eps)
      layer.keys.push(rope(times(layer.k, h), position, shape))
      layer.values.push(times(layer.v, h))
      x = add(x, times(layer.o, attention(rope(times(layer.q, h), position, shape), layer.keys, layer.values, shape)))
      const g = rmsNorm(x, layer.after, shape.eps)
      const up = times(layer.up, g)
      x = add(
        x,
        times(
          layer.down,
          times(layer.gate, g).map((value, i) => silu(value) * up[i]),
        ),
      )
    }
    position++
    return times(embedding, rmsNorm(x, finalNorm, shape.eps))
  }
}
