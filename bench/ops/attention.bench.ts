import { mostSequences, type OpBench, type OpCase } from './op.ts'

export const attention: OpBench = (inputs, rows) => {
  const { heads, kvHeads, headDim, context } = inputs.config
  const q = inputs.bf16(rows, heads, headDim)
  const over = (name: string, sequences: number, length: number): OpCase => {
    const pending = rows / sequences
    const { buffers, pages } = inputs.step(sequences, length, pending)
    const kv = inputs.kv(pages)
    const seen = sequences * pending * (length - (pending - 1) / 2) // keys, over all queries
    const bytes = 2 * (2 * rows * heads * headDim + 2 * sequences * length * kvHeads * headDim)
    const work = { bytes, flops: 4 * heads * headDim * seen }
    return { name, record: (op, i) => op.attention(q, kv(i), buffers.step), work }
  }
  const length = Math.min(1024, context)
  const decode = rows <= mostSequences ? [over(`decode, context ${length}`, rows, length)] : []
  return rows < mostSequences ? decode : [...decode, over('prefill', 1, rows)]
}
