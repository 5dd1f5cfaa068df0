/** Batch -> StepInputs and Sampling: the host's side of what changes from step to step. */
import type { Device, DeviceTensor, F32, I32, Sampling, StepInputs, U32 } from '../binding.d.ts'
import type { Batch } from './scheduler.ts'

/** The sizes that one recorded program has room for. */
export interface Bucket {
  readonly tokens: number
  readonly seqs: number
  /** Rows through the head. */
  readonly outputs: number
  /** Pages of one sequence. */
  readonly maxPages: number
}

/** A host array and its copy on the device. */
interface Mirror<H extends Int32Array | Float32Array | Uint32Array, D extends DeviceTensor> {
  readonly host: H
  readonly device: D
}

type HostInputs = Record<Exclude<keyof StepInputs, 'previous'>, Int32Array>

/** The inputs of one program. Host arrays are filled for a batch, then written to the device in one go. */
export class StepBuffers {
  readonly bucket: Bucket
  readonly step: StepInputs
  readonly sampling: Sampling
  readonly #device: Device
  readonly #mirrors: Mirror<Int32Array | Float32Array | Uint32Array, DeviceTensor>[] = []
  readonly #host: HostInputs
  readonly #temperature: Float32Array
  readonly #topP: Float32Array
  readonly #minP: Float32Array
  readonly #topK: Int32Array
  readonly #seed: Uint32Array
  readonly #position: Int32Array

  constructor(device: Device, bucket: Bucket) {
    this.bucket = bucket
    this.#device = device
    const { tokens, seqs, outputs, maxPages } = bucket
    const shapes = {
      tokens: [tokens],
      source: [tokens],
      positions: [tokens],
      slots: [tokens],
      queryStart: [seqs + 1],
      kvLength: [seqs],
      pageTable: [seqs, maxPages],
      outputs: [outputs],
    }
    const entries = Object.entries(shapes).map(([name, shape]) => [name, this.#i32(...shape)] as const)
    this.#host = Object.fromEntries(entries.map(([name, m]) => [name, m.host])) as HostInputs
    this.step = Object.fromEntries(entries.map(([name, m]) => [name, m.device])) as unknown as StepInputs
    this.#host.source.fill(-1)

    const temperature = this.#f32(outputs)
    const topP = this.#f32(outputs)
    const minP = this.#f32(outputs)
    const topK = this.#i32(outputs)
    const seed = this.#mirror(new Uint32Array(outputs * 2), device.tensor('u32', [outputs, 2]) as U32)
    const position = this.#i32(outputs)
    this.sampling = {
      temperature: temperature.device,
      topP: topP.device,
      minP: minP.device,
      topK: topK.device,
      seed: seed.device,
      position: position.device,
    }
    this.#temperature = temperature.host
    this.#topP = topP.host
    this.#minP = minP.host
    this.#topK = topK.host
    this.#seed = seed.host
    this.#position = position.host
  }

  /** Pending tokens of every sequence; its last row is sampled. Enqueues the writes. */
  writeBatch(batch: Batch, pageSize: number): void {
    this.#clear()
    const rows = { next: 0 }
    for (const [s, sequence] of batch.entries()) {
      this.#place(s, rows, sequence.tokens, sequence.computed, sequence.tokens.length, sequence.pages, pageSize)
      this.#host.outputs[s] = rows.next - 1
      this.#temperature[s] = sequence.sampling.temperature
      this.#topP[s] = sequence.sampling.topP
      this.#minP[s] = sequence.sampling.minP
      this.#topK[s] = sequence.sampling.topK
      this.#seed.set(sequence.sampling.seed, s * 2)
      this.#position[s] = sequence.tokens.length
    }
    this.#write()
  }

  /** Tokens [from, to) of one sequence; every row goes through the head. */
  writeEvaluation(tokens: readonly number[], from: number, to: number, pages: readonly number[], pageSize: number): void {
    this.#clear()
    this.#place(0, { next: 0 }, tokens, from, to, pages, pageSize)
    for (let i = 0; i < to - from; i++) this.#host.outputs[i] = i
    this.#write()
  }

  #clear(): void {
    this.#host.slots.fill(-1)
    this.#host.outputs.fill(-1)
    this.#host.kvLength.fill(0)
    this.#host.queryStart.fill(0)
  }

  #place(
    s: number,
    rows: { next: number },
    tokens: readonly number[],
    from: number,
    to: number,
    pages: readonly number[],
    pageSize: number,
  ): void {
    const { tokens: ids, positions, slots, pageTable, kvLength, queryStart } = this.#host
    for (let position = from; position < to; position++) {
      const row = rows.next++
      ids[row] = tokens[position]!
      positions[row] = position
      slots[row] = pages[Math.floor(position / pageSize)]! * pageSize + (position % pageSize)
    }
    const { maxPages } = this.bucket
    pageTable.fill(-1, s * maxPages, (s + 1) * maxPages)
    pageTable.set(pages, s * maxPages)
    kvLength[s] = to
    queryStart.fill(rows.next, s + 1)
  }

  #write(): void {
    for (const { host, device } of this.#mirrors) this.#device.write(device, host)
  }

  #mirror<H extends Int32Array | Float32Array | Uint32Array, D extends DeviceTensor>(host: H, device: D): Mirror<H, D> {
    const mirror = { host, device }
    this.#mirrors.push(mirror)
    return mirror
  }

  #i32(...shape: number[]): Mirror<Int32Array, I32> {
    const count = shape.reduce((a, b) => a * b)
    return this.#mirror(new Int32Array(count), this.#device.tensor('i32', shape))
  }

  #f32(count: number): Mirror<Float32Array, F32> {
    return this.#mirror(new Float32Array(count), this.#device.tensor('f32', [count]))
  }
}
