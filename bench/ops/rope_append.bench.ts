import { invFreq } from '../../lib/config.ts'
import { type OpBench, stepOf } from './op.ts'

export const ropeAppend: OpBench = (inputs, rows) => {
  const { heads, kvHeads, headDim } = inputs.config
  const qkv = inputs.bf16(rows, (heads + 2 * kvHeads) * headDim)
  const { buffers, pages } = stepOf(inputs, rows, 64)
  const kv = inputs.kv(pages)
  const frequencies = inputs.device.tensor('f32', [headDim / 2])
  inputs.device.write(frequencies, invFreq(inputs.config))
  return [{ name: '', record: (op, i) => op.ropeAppend(qkv, kv(i), buffers.step, frequencies) }]
}
