import { type OpBench, stepOf } from './op.ts'

export const selectRows: OpBench = (inputs, rows) => {
  const x = inputs.f32(rows, inputs.config.dim)
  const { step } = stepOf(inputs, rows, 64).buffers
  return [{ name: '', record: op => op.selectRows(x, step) }]
}
