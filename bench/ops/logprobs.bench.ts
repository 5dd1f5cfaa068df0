import { mostSequences, type OpBench } from './op.ts'

export const logprobs: OpBench = (inputs, rows) => {
  if (rows > mostSequences) return [] // one row a sequence
  const logits = inputs.f32(rows, inputs.config.vocab)
  const ids = inputs.device.tensor('i32', [rows]) // zeros
  return [{ name: '', record: op => op.logprobs(logits, ids, ids) }]
}
