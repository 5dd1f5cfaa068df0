// The models that are compared, and what both the file writer and the checks need to know about them.

const llama = { theta: 500000, eps: 1e-5, context: 8192 }

export const shapes = {
  /** Llama 3.2 1B, with plain RoPE (no frequency scaling), so that both engines compute the same function. */
  '1b': { ...llama, layers: 16, dim: 2048, heads: 32, kvHeads: 8, headDim: 64, hidden: 8192, vocab: 128256 },
  /** For testing these tools. */
  tiny: { ...llama, layers: 2, dim: 256, heads: 4, kvHeads: 2, headDim: 64, hidden: 512, vocab: 4096 },
}

/** Special tokens are the last 256, as in Llama 3. */
export const bos = shape => shape.vocab - 256
export const eos = shape => shape.vocab - 255

/**
 * All tensors in file order. `norm`: a vector around 1. `rope`: rows of q and k, which the two formats order differently.
 * The embedding is also the output head (tied).
 */
export function tensors({ layers, dim, heads, kvHeads, headDim, hidden, vocab }) {
  const matrix = (hf, gguf, rows, columns, rope = false) => ({ hf: `${hf}.weight`, gguf: `${gguf}.weight`, rows, columns, rope })
  const norm = (hf, gguf) => ({ ...matrix(hf, gguf, 1, dim), norm: true })
  const layer = n => {
    const [hf, gguf] = [`model.layers.${n}`, `blk.${n}`]
    return [
      norm(`${hf}.input_layernorm`, `${gguf}.attn_norm`),
      matrix(`${hf}.self_attn.q_proj`, `${gguf}.attn_q`, heads * headDim, dim, true),
      matrix(`${hf}.self_attn.k_proj`, `${gguf}.attn_k`, kvHeads * headDim, dim, true),
      matrix(`${hf}.self_attn.v_proj`, `${gguf}.attn_v`, kvHeads * headDim, dim),
      matrix(`${hf}.self_attn.o_proj`, `${gguf}.attn_output`, dim, heads * headDim),
      norm(`${hf}.post_attention_layernorm`, `${gguf}.ffn_norm`),
      matrix(`${hf}.mlp.gate_proj`, `${gguf}.ffn_gate`, hidden, dim),
      matrix(`${hf}.mlp.up_proj`, `${gguf}.ffn_up`, hidden, dim),
      matrix(`${hf}.mlp.down_proj`, `${gguf}.ffn_down`, dim, hidden),
    ]
  }
  const list = [matrix('model.embed_tokens', 'token_embd', vocab, dim)]
  for (let n = 0; n < layers; n++) list.push(...layer(n))
  return [...list, norm('model.norm', 'output_norm')]
}

/** Bytes of weights that one decoded token must read: every matrix once (the tied embedding as the head). */
export const weightBytes = shape => tensors(shape).reduce((sum, t) => sum + (t.norm ? 0 : 2 * t.rows * t.columns), 0)

/** The same prompt for every engine: ordinary tokens in no order. */
export const promptTokens = (shape, count) =>
  Array.from({ length: count }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 0) % bos(shape))

/** The `config.json` of the model folder. */
export const config = shape => ({
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  attention_dropout: 0,
  bos_token_id: bos(shape),
  eos_token_id: eos(shape),
  head_dim: shape.headDim,
  hidden_act: 'silu',
  hidden_size: shape.dim,
  initializer_range: 0.02,
  intermediate_size: shape.hidden,
  max_position_embeddings: shape.context,
  mlp_bias: false,
  model_type: 'llama',
  num_attention_heads: shape.heads,
  num_hidden_layers: shape.layers,
  num_key_value_heads: shape.kvHeads,
  pretraining_tp: 1,
  rms_norm_eps: shape.eps,
  rope_scaling: null,
  rope_theta: shape.theta,
  tie_word_embeddings: true,
  torch_dtype: 'bfloat16',
  use_cache: true,
  vocab_size: shape.vocab,
})

/** The shape of a model folder made by make-model.mjs: its name and numbers, from the configuration. */
export function shapeOf(config) {
  const found = Object.entries(shapes).find(([, s]) => s.dim === config.hidden_size && s.layers === config.num_hidden_layers)
  if (!found) throw new Error('not a model made by make-model.mjs')
  return { name: found[0], ...found[1] }
}
