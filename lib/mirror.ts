/** Arrays of the host and their copies on the device. */
import type { Device, DeviceTensor, DType, F32, I32, U32 } from '../binding.d.ts'

/** A host array, and the device tensor that it is written to. */
export class Mirror<H extends Int32Array | Float32Array | Uint32Array, D extends DeviceTensor> {
  readonly host: H
  readonly device: D
  readonly #device: Device

  constructor(device: Device, host: H, dtype: DType, shape: readonly number[]) {
    this.#device = device
    this.host = host
    this.device = device.tensor(dtype, shape) as D
  }

  /** Enqueues the write of the first `count` elements. */
  write(count: number): void {
    if (count > 0) this.#device.write(this.device, this.host.subarray(0, count))
  }
}

const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b)
export const i32 = (device: Device, ...shape: number[]) =>
  new Mirror<Int32Array, I32>(device, new Int32Array(size(shape)), 'i32', shape)
export const f32 = (device: Device, ...shape: number[]) =>
  new Mirror<Float32Array, F32>(device, new Float32Array(size(shape)), 'f32', shape)
export const u32 = (device: Device, ...shape: number[]) =>
  new Mirror<Uint32Array, U32>(device, new Uint32Array(size(shape)), 'u32', shape)
