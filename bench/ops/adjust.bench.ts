import type { DeviceTensor, DType, Edits } from '../../binding.d.ts'
import { mostSequences, type OpBench } from './op.ts'

/** Tokens that each request has seen. */
const seen = 500

export const adjust: OpBench = (inputs, rows) => {
  if (rows > mostSequences) return [] // one row a sequence
  const { device, config } = inputs
  const logits = inputs.f32(rows, config.vocab)
  const put = <D extends DType>(dtype: D, shape: number[], value: (i: number) => number): DeviceTensor<D> => {
    const tensor = device.tensor(dtype, shape)
    const count = shape.reduce((a, b) => a * b)
    const values = Array.from({ length: count }, (_, i) => value(i))
    device.write(tensor, dtype === 'f32' ? Float32Array.from(values) : Int32Array.from(values))
    return tensor
  }
  const penalties: Edits = {
    start: put('i32', [rows], i => i * seen),
    end: put('i32', [rows], i => (i + 1) * seen),
    ids: put('i32', [rows * seen], i => (i * 997) % config.vocab),
    bias: put('f32', [rows * seen], () => 0),
    count: put('i32', [rows * seen], i => i % 3),
    repetition: put('f32', [rows], () => 1.1),
    frequency: put('f32', [rows], () => 0.1),
    presence: put('f32', [rows], () => 0.1),
    newest: put('i32', [rows], () => -1),
    maskRow: put('i32', [rows], () => -1),
  }
  const masks = put('i32', [rows, Math.ceil(config.vocab / 32)], i => Math.imul(i, 0x9e3779b1))
  const masked = { ...penalties, maskRow: put('i32', [rows], i => i), masks }
  return [
    { name: 'penalties', record: op => op.adjust(logits, penalties) },
    { name: 'penalties and a mask', record: op => op.adjust(logits, masked) },
  ]
}
