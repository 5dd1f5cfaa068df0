/** A device that is memory alone, written at once: what of a step has arrived there. */
import type { Device, DeviceTensor } from '../../binding.d.ts'

type Data = Int32Array | Float32Array | Uint32Array

export class Memory {
  /** Elements written, and calls that wrote them. */
  written = 0
  calls = 0
  /** After so many calls more one throws. */
  failsAfter = Number.POSITIVE_INFINITY

  get device(): Device {
    return this as unknown as Device
  }

  /** Nothing of it is known before it is written. */
  tensor(dtype: 'i32' | 'f32' | 'u32', shape: readonly number[]): DeviceTensor {
    const make = { i32: Int32Array, u32: Uint32Array, f32: Float32Array }[dtype]
    return { data: new make(shape.reduce((a, b) => a * b)).fill(12345), shape } as unknown as DeviceTensor
  }

  write(to: DeviceTensor, from: Data, at?: Int32Array): void {
    if (this.failsAfter-- === 0) throw new Error('a write fails')
    const data = dataOf(to)
    if (from.constructor !== data.constructor) throw new Error(`${from.constructor.name} for ${data.constructor.name}`)
    if (at && at.length !== from.length) throw new Error(`${from.length} elements for ${at.length} places`)
    this.calls++
    this.written += from.length
    if (!at) data.set(from)
    else
      for (const [i, place] of at.entries())
        if (place in data) data[place] = from[i]!
        else throw new Error(`there is no place ${place} of ${data.length}`)
  }
}

export const dataOf = (tensor: DeviceTensor): Data => (tensor as unknown as { data: Data }).data
