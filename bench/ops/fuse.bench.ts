import { invFreq } from '../../lib/config.ts'
import { mostSequences, type OpBench, type OpCase, stepOf } from './op.ts'

/** What a layer is made of where neighbours are one kernel. */
export const fuse: OpBench = (inputs, rows) => {
  const { heads, kvHeads, headDim, dim, hidden, vocab, eps } = inputs.config
  const x = inputs.f32(rows, dim)
  const norm = inputs.weights(dim)
  const wqkv = inputs.weights((heads + 2 * kvHeads) * headDim, dim)
  const gateUp = inputs.weights(2 * hidden, dim)
  const { buffers, pages } = stepOf(inputs, rows, 64)
  const kv = inputs.kv(pages)
  const frequencies = inputs.device.tensor('f32', [headDim / 2])
  inputs.device.write(frequencies, invFreq(inputs.config))
  const cases: OpCase[] = [
    {
      name: 'norm, qkv, rope + append',
      record: (op, i) => op.ropeAppend(op.linear(op.rmsNorm(x, norm(i), eps), wqkv(i)), kv(i), buffers.step, frequencies),
    },
    { name: 'norm, gate, up, swiglu', record: (op, i) => op.swiglu(op.linear(op.rmsNorm(x, norm(i), eps), gateUp(i))) },
  ]
  if (rows > mostSequences) return cases
  const head = inputs.weights(vocab, dim)
  cases.push({ name: 'norm, head', record: (op, i) => op.linear(op.rmsNorm(x, norm(i), eps), head(i), { as: 'f32' }) })
  return cases
}
