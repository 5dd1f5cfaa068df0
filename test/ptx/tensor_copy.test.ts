// TMA: boxes of tensors with two and five axes, at coordinates inside, across every edge and far outside.

import { swizzledByte } from './fragments.ts'
import { type Probe, probes, sameWords } from './probe.ts'

interface Tensor {
  readonly sizes: readonly number[]
  readonly strides: readonly number[]
  readonly box: readonly number[]
}

function copyBoxes(probe: Probe, { sizes, strides, box }: Tensor): void {
  const { random } = probe
  const rank = sizes.length
  const elements = sizes.reduce((last, size, i) => last + (size - 1) * strides[i]!, 0) + 1
  const padded = Math.ceil(elements / 8) * 8
  const boxes = 24
  const input = new Uint32Array(padded / 2 + boxes * rank)
  input.set(probe.words(padded / 2))
  const bits = new Uint16Array(input.buffer)
  const firsts = new Int32Array(input.buffer, padded * 2)
  const rows = box.slice(1).reduce((a, b) => a * b, 1)
  const want = new Uint8Array(boxes * rows * 128)
  const wanted = new DataView(want.buffer)
  for (let b = 0; b < boxes; b++) {
    const first = sizes.map((size, axis) => (b === 0 ? 0 : random.int(-box[axis]!, size + 2)))
    firsts.set(first, b * rank)
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < 64; column++) {
        // The axes after the innermost one make rows, the first of them fastest.
        let rest = row
        const at = first.map((x, axis) => {
          if (axis === 0) return x + column
          const step = rest % box[axis]!
          rest = Math.floor(rest / box[axis]!)
          return x + step
        })
        const inside = at.every((x, axis) => x >= 0 && x < sizes[axis]!)
        const place = at.reduce((sum, x, axis) => sum + x * strides[axis]!, 0)
        const before = b % 8 // rows since a multiple of 1024 bytes
        const byte = swizzledByte(before + row, column) - before * 128
        wanted.setUint16(b * rows * 128 + byte, inside ? bits[place]! : 0, true)
      }
  }
  sameWords(probe.exact(input, padded, ...sizes, ...strides, ...box), new Uint32Array(want.buffer), 'the boxes')
}

probes('tensor_copy_2', check => {
  const matrices: [number, number, number, number][] = [
    [64, 64, 64, 64],
    [72, 20, 72, 16],
    [200, 300, 208, 256],
    [61, 9, 64, 8], // columns that are no multiple of 16 bytes
    [8, 3, 8, 1],
    [136, 70, 136, 5],
  ]
  for (const [columns, rows, stride, side] of matrices)
    check(`${side} x 64 of ${rows} x ${columns}, ${stride} apart`, probe =>
      copyBoxes(probe, { sizes: [columns, rows], strides: [1, stride], box: [64, side] }),
    )
})

probes('tensor_copy_5', check => {
  check('rows of two halves side by side', probe =>
    copyBoxes(probe, { sizes: [64, 8, 2, 4, 1], strides: [1, 64, 32 * 64, 8 * 64, 64 * 64], box: [64, 8, 2, 4, 1] }),
  )
  check('odd sizes, a part of every axis', probe =>
    copyBoxes(probe, { sizes: [72, 5, 3, 4, 3], strides: [1, 80, 400, 1200, 4800], box: [64, 3, 2, 3, 2] }),
  )
  check('axes in another order in memory', probe =>
    copyBoxes(probe, { sizes: [64, 3, 4, 2, 5], strides: [1, 64 * 40, 64 * 10, 64 * 5, 64], box: [64, 2, 4, 1, 4] }),
  )
})
