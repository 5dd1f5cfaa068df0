import type { F32, KvLayer, Recorder, Sampled, Sampling, StepInputs } from '../binding.d.ts'
import type { Layer, Model } from './weights.ts'

/** Llama 3: tokens in, one sampled token per output row out. */
export function forward(op: Recorder, m: Model, kv: readonly KvLayer[], step: StepInputs, sampling: Sampling): Sampled {
  return op.sample(logits(op, m, kv, step), sampling)
}

/** Logits [out, vocab] of the rows step.outputs. */
export function logits(op: Recorder, m: Model, kv: readonly KvLayer[], step: StepInputs): F32 {
  let x = op.embed(m.embed, step)
  for (const [i, layer] of m.layers.entries()) {
    x = attention(op, m, layer, kv[i]!, step, x)
    x = feedForward(op, m, layer, x)
  }
  const last = op.rmsNorm(op.selectRows(x, step), m.norm, m.eps)
  return op.linear(last, m.head, { as: 'f32' })
}

// x + Attention(RMSNorm(x))
function attention(op: Recorder, m: Model, layer: Layer, kv: KvLayer, step: StepInputs, x: F32): F32 {
  const qkv = op.linear(op.rmsNorm(x, layer.attnNorm, m.eps), layer.wqkv)
  const q = op.ropeAppend(qkv, kv, step, m.invFreq)
  return op.linear(op.attention(q, kv, step), layer.wo, { add: x })
}

// x + W_down(silu(W_gate h) * W_up h),  h = RMSNorm(x)
function feedForward(op: Recorder, m: Model, layer: Layer, x: F32): F32 {
  const gateUp = op.linear(op.rmsNorm(x, layer.ffnNorm, m.eps), layer.wGateUp)
  return op.linear(op.swiglu(gateUp), layer.wDown, { add: x })
}
