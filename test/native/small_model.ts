// Everything that the operations take, in matching shapes, for the tests of recording.
import type { Device, DeviceTensor, DType, KvLayer, Sampling, StepInputs } from '../../binding.d.ts'
import type { Model } from '../../lib/weights.ts'

export const shape = {
  tokens: 4,
  seqs: 2,
  out: 3,
  pages: 6,
  pageSize: 4,
  maxPages: 3,
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  vocab: 50,
}
export const dim = shape.heads * shape.headDim
export const hidden = 48

export function stepOn(device: Device, sizes = shape): StepInputs {
  const i32 = (shape: readonly number[], values: readonly number[]) => written(device, 'i32', shape, values)
  const { tokens, seqs, out, maxPages, pageSize } = sizes
  const rows = [...Array(tokens).keys()]
  const perSeq = tokens / seqs
  return {
    tokens: i32([tokens], rows),
    source: i32(
      [tokens],
      rows.map(() => -1),
    ),
    positions: i32(
      [tokens],
      rows.map(t => t % perSeq),
    ),
    slots: i32(
      [tokens],
      rows.map(t => Math.floor(t / perSeq) * maxPages * pageSize + (t % perSeq)),
    ),
    queryStart: i32(
      [seqs + 1],
      [...Array(seqs + 1).keys()].map(s => s * perSeq),
    ),
    kvLength: i32([seqs], new Array(seqs).fill(perSeq)),
    pageTable: i32([seqs, maxPages], [...Array(seqs * maxPages).keys()]),
    outputs: i32([out], [...Array(out).keys()]),
  }
}

export function samplingOn(device: Device, out = shape.out): Sampling {
  return {
    temperature: device.tensor('f32', [out]),
    topP: written(device, 'f32', [out], new Array(out).fill(1)),
    minP: device.tensor('f32', [out]),
    topK: device.tensor('i32', [out]),
    seed: device.tensor('u32', [out, 2]),
    position: device.tensor('i32', [out]),
  }
}

export function kvOn(device: Device, pages = shape.pages): KvLayer {
  const axes = [pages, shape.kvHeads, shape.pageSize, shape.headDim]
  const type = device.activation as 'bf16'
  return { k: device.tensor(type, axes), v: device.tensor(type, axes) }
}

export function modelOn(device: Device, layers: number): Model {
  const random = (axes: readonly number[], seed: number) => device.random(axes, seed, axes.length === 1 ? 1 : 0.2)
  const { heads, kvHeads, headDim, vocab } = shape
  return {
    embed: random([vocab, dim], 1),
    layers: Array.from({ length: layers }, (_, i) => ({
      attnNorm: random([dim], 10 * i + 2),
      wqkv: random([(heads + 2 * kvHeads) * headDim, dim], 10 * i + 3),
      wo: random([dim, dim], 10 * i + 4),
      ffnNorm: random([dim], 10 * i + 5),
      wGateUp: random([2 * hidden, dim], 10 * i + 6),
      wDown: random([dim, hidden], 10 * i + 7),
    })),
    norm: random([dim], 8),
    head: random([vocab, dim], 9),
    invFreq: written(device, 'f32', [headDim / 2], [1, 0.1, 0.01, 0.001]),
    eps: 1e-5,
  }
}

export function written<D extends DType>(
  device: Device,
  dtype: D,
  axes: readonly number[],
  values: readonly number[],
): DeviceTensor<D> {
  const tensor = device.tensor(dtype, axes)
  const types = { f32: Float32Array, i32: Int32Array, u32: Uint32Array, bf16: Uint16Array }
  device.write(tensor, types[dtype].from(values))
  return tensor
}

/** The code of what `body` throws, and its message. */
export function thrown(body: () => unknown): { code: string; message: string } {
  try {
    body()
  } catch (error) {
    const { code, message } = error as { code: string; message: string }
    return { code, message }
  }
  throw new Error('nothing was thrown')
}

/** As thrown, for a promise. */
export async function rejected(promise: Promise<unknown>): Promise<{ code: string; message: string }> {
  const settled = await promise.then(
    () => undefined,
    (error: { code: string; message: string }) => ({ code: error.code, message: error.message }),
  )
  if (!settled) throw new Error('it was not rejected')
  return settled
}
