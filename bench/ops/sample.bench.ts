import { mostSequences, type OpBench } from './op.ts'

export const sample: OpBench = (inputs, rows) => {
  if (rows > mostSequences) return [] // one row a sequence
  const logits = inputs.f32(rows, inputs.config.vocab)
  const greedy = inputs.sampling(rows, { temperature: 0, topK: 0, topP: 1 })
  const kept = inputs.sampling(rows, { temperature: 0.8, topK: 40, topP: 0.9 })
  return [
    { name: 'greedy', record: op => op.sample(logits, greedy) },
    { name: 'top-k 40, top-p 0.9', record: op => op.sample(logits, kept) },
  ]
}
