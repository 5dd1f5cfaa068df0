/** Arrays of the host and their copies on the device. */
import type { Device, DeviceTensor, DType, F32, I32, U32 } from '../binding.d.ts'

/** A host array, and the device tensor that it is written to. */
export class Mirror<H extends Int32Array | Float32Array | Uint32Array, D extends DeviceTensor> {
  readonly host: H
  readonly device: D
  readonly #device: Device
  #values: H

  constructor(device: Device, host: H, dtype: DType, shape: readonly number[]) {
    this.#device = device
    this.host = host
    this.#values = host.slice(0, 0) as H
    this.device = device.tensor(dtype, shape) as D
  }

  /** Enqueues the write of the first `count` elements. */
  write(count: number): void {
    if (count > 0) this.#device.write(this.device, this.host.subarray(0, count))
  }

  /** Enqueues the write of the elements at these places. */
  writeAt(places: Int32Array): void {
    if (places.length === 0) return
    if (this.#values.length < places.length) this.#values = new (this.host.constructor as new (n: number) => H)(2 * places.length)
    for (let i = 0; i < places.length; i++) this.#values[i] = this.host[places[i]!]!
    this.#device.write(this.device, this.#values.subarray(0, places.length), places)
  }
}

/** Places in an array, gathered for one write. */
export class Places {
  #all = new Int32Array(256)
  #count = 0

  add(place: number): void {
    if (this.#count === this.#all.length) {
      const more = new Int32Array(2 * this.#count)
      more.set(this.#all)
      this.#all = more
    }
    this.#all[this.#count++] = place
  }

  /** Those that were added since the last time; valid until the next one is. */
  take(): Int32Array {
    const taken = this.#all.subarray(0, this.#count)
    this.#count = 0
    return taken
  }
}

const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b)
export const i32 = (device: Device, ...shape: number[]) =>
  new Mirror<Int32Array, I32>(device, new Int32Array(size(shape)), 'i32', shape)
export const f32 = (device: Device, ...shape: number[]) =>
  new Mirror<Float32Array, F32>(device, new Float32Array(size(shape)), 'f32', shape)
export const u32 = (device: Device, ...shape: number[]) =>
  new Mirror<Uint32Array, U32>(device, new Uint32Array(size(shape)), 'u32', shape)
