import type { OpBench } from './op.ts'

export const rmsNorm: OpBench = (inputs, rows) => {
  const { dim, eps } = inputs.config
  const x = inputs.f32(rows, dim)
  const weight = inputs.weights(dim)
  return [{ name: '', record: (op, i) => op.rmsNorm(x, weight(i), eps) }]
}
