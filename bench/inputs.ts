/** Random operands for benchmarks: zeros would need less power, and be faster. */
import type { BF16, Device, F32, I32, KvLayer, U32, Weight } from '../binding.d.ts'
import type { LlamaConfig } from '../lib/config.ts'
import type { Work } from '../lib/scheduler.ts'
import { Sequence } from '../lib/sequence.ts'
import { StepBuffers } from '../lib/step.ts'
import { promptOf } from './harness.ts'

export const pageSize = 16

/** Pairs of bf16 of either sign, from 2^-7 to 2; as float32 they are numbers of that size too. */
let block = new Uint32Array(0)
function randomWords(count: number): Uint32Array {
  if (block.length < count) {
    block = new Uint32Array(count)
    const own = Math.min(count, 2 ** 20)
    let state = 1
    for (let i = 0; i < own; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      block[i] = ((state & 0x83ff83ff) | 0x3c003c00) >>> 0
    }
    for (let done = own; done < count; done *= 2) block.copyWithin(done, 0, Math.min(done, count - done))
  }
  return block.subarray(0, count)
}

export interface Sizes {
  /** Bytes of weights and caches to take turns with, so that none is still in the L2 cache when its turn comes again. */
  readonly rotate: number
  /** How often an operation is recorded in a program. */
  readonly commands: number
}

/** Tensors and weights on one device, made once for each shape. */
export class Inputs {
  readonly device: Device
  readonly config: LlamaConfig
  readonly sizes: Sizes
  readonly #made = new Map<string, unknown>()
  #seed = 1

  constructor(device: Device, config: LlamaConfig, sizes: Sizes) {
    this.device = device
    this.config = config
    this.sizes = sizes
  }

  bf16(...shape: number[]): BF16 {
    return this.#once(`bf16 ${shape}`, () => {
      const tensor = this.device.tensor('bf16', shape)
      const count = product(shape)
      this.device.write(tensor, new Uint16Array(randomWords(Math.ceil(count / 2)).buffer, 0, count))
      return tensor
    })
  }

  f32(...shape: number[]): F32 {
    return this.#once(`f32 ${shape}`, () => {
      const tensor = this.device.tensor('f32', shape)
      this.device.write(tensor, new Float32Array(randomWords(product(shape)).buffer, 0, product(shape)))
      return tensor
    })
  }

  /** Weights of this shape to take turns with. */
  weights(...shape: number[]): (i: number) => Weight {
    const copies = this.#copies(2 * product(shape))
    const std = shape.length === 1 ? 1 : 0.02
    const all = this.#once(`weights ${shape}`, () =>
      Array.from({ length: copies }, () => this.device.random(shape, this.#seed++, std)),
    )
    return i => all[i % copies]!
  }

  /** Layers of a cache of so many pages, to take turns with. */
  kv(pages: number): (i: number) => KvLayer {
    const { kvHeads, headDim } = this.config
    const copies = this.#copies(2 * 2 * product([pages, kvHeads, pageSize, headDim]))
    const all = this.#once(`kv ${pages}`, () => Array.from({ length: copies }, () => this.cache(pages)))
    return i => all[i % copies]!
  }

  /** One layer of a cache. */
  cache(pages: number): KvLayer {
    const shape = [pages, this.config.kvHeads, pageSize, this.config.headDim]
    const [k, v] = [this.device.tensor('bf16', shape), this.device.tensor('bf16', shape)]
    const values = new Uint16Array(randomWords(product(shape) / 2).buffer, 0, product(shape))
    for (const cache of [k, v]) this.device.write(cache, values)
    return { k, v }
  }

  /** Sequences of `length` tokens each, of which the last `pending` are to be computed. */
  step(sequences: number, length: number, pending: number): { buffers: StepBuffers; pages: number } {
    return this.#once(`step ${sequences} ${length} ${pending}`, () => {
      const buffers = new StepBuffers(this.device, {
        tokens: sequences * pending,
        seqs: sequences,
        outputs: sequences,
        maxPages: Math.ceil(length / pageSize),
      })
      buffers.writeBatch(batchOf(this.config, sequences, length, pending), pageSize)
      return { buffers, pages: sequences * Math.ceil(length / pageSize) }
    })
  }

  /** How each of so many rows is sampled. */
  sampling(rows: number, { temperature, topK, topP }: { temperature: number; topK: number; topP: number }) {
    const { device } = this
    const f32 = (value: number): F32 => {
      const tensor = device.tensor('f32', [rows])
      device.write(tensor, new Float32Array(rows).fill(value))
      return tensor
    }
    const i32 = (value: (i: number) => number): I32 => {
      const tensor = device.tensor('i32', [rows])
      device.write(
        tensor,
        Int32Array.from({ length: rows }, (_, i) => value(i)),
      )
      return tensor
    }
    const seed = device.tensor('u32', [rows, 2]) as U32
    const parameters = { temperature: f32(temperature), topP: f32(topP), minP: f32(0), topK: i32(() => topK) }
    return { ...parameters, seed, position: i32(i => i) }
  }

  #copies(bytes: number): number {
    return Math.max(1, Math.min(this.sizes.commands, Math.ceil(this.sizes.rotate / bytes)))
  }

  #once<T>(key: string, make: () => T): T {
    const found = (this.#made.get(key) as T | undefined) ?? make()
    this.#made.set(key, found)
    return found
  }
}

/** Sequences of `length` tokens with pages of their own, whose last `pending` tokens are to be computed. */
export function batchOf(config: LlamaConfig, sequences: number, length: number, pending: number): Work[] {
  const greedy = { temperature: 0, topP: 1, topK: 0, minP: 0, seed: [0, 0] as const }
  const pages = Math.ceil(length / pageSize)
  return Array.from({ length: sequences }, (_, i) => {
    const sequence = new Sequence(promptOf(length, config.vocab, i), 1, greedy)
    sequence.computed = length - pending
    sequence.pages = Array.from({ length: pages }, (__, page) => i * pages + page)
    return workOf(sequence)
  })
}

/** All that is pending of a sequence, in one step. */
export function workOf(sequence: Sequence): Work {
  const { epoch, computed, length } = sequence
  return { sequence, epoch, from: computed, to: length, guesses: [], rows: 1, samples: true }
}

export const product = (axes: readonly number[]): number => axes.reduce((a, b) => a * b, 1)
