import type { OpBench } from './op.ts'

export const swiglu: OpBench = (inputs, rows) => {
  const gateUp = inputs.bf16(rows, 2 * inputs.config.hidden)
  return [{ name: '', record: op => op.swiglu(gateUp) }]
}
