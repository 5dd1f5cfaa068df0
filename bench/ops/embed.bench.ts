import type { OpBench } from './op.ts'
import { stepOf } from './op.ts'

export const embed: OpBench = (inputs, rows) => {
  const { vocab, dim } = inputs.config
  const table = inputs.weights(vocab, dim)
  const { step } = stepOf(inputs, rows, 64).buffers
  return [{ name: '', record: (op, i) => op.embed(table(i), step) }]
}
