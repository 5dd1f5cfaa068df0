import type { BF16, Recorder, Weight } from '../../binding.d.ts'
import { mostSequences, type OpBench } from './op.ts'

export const linear: OpBench = (inputs, rows) => {
  const { heads, kvHeads, headDim, dim, hidden, vocab } = inputs.config
  const product = (name: string, out: number, into: number, append: (op: Recorder, x: BF16, weight: Weight) => unknown) => {
    const x = inputs.bf16(rows, into)
    const weight = inputs.weights(out, into)
    return { name, record: (op: Recorder, i: number) => append(op, x, weight(i)) }
  }
  const residual = inputs.f32(rows, dim)
  const cases = [
    product('qkv', (heads + 2 * kvHeads) * headDim, dim, (op, x, w) => op.linear(x, w)),
    product('o + residual', dim, heads * headDim, (op, x, w) => op.linear(x, w, { add: residual })),
    product('gate, up', 2 * hidden, dim, (op, x, w) => op.linear(x, w)),
    product('down + residual', dim, hidden, (op, x, w) => op.linear(x, w, { add: residual })),
  ]
  // Only the last row of each sequence goes through the head.
  if (rows <= mostSequences) cases.push(product('head', vocab, dim, (op, x, w) => op.linear(x, w, { as: 'f32' })))
  return cases
}
