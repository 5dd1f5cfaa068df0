import { describe, expect, test } from '@jest/globals'
import { builtinConfigs, invFreq, isBuiltinConfig, type LlamaConfig, parseConfig, readConfig } from '../../lib/config.ts'
import { ModelError } from '../../lib/errors.ts'

const fixture = (name: string) => new URL(name === 'demo' ? '../../lib/demo' : `../fixtures/${name}`, import.meta.url).pathname

/** Llama-3.1-8B-Instruct's config.json and generation_config.json, as published. */
const llama31 = {
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008, 128009],
  hidden_act: 'silu',
  hidden_size: 4096,
  initializer_range: 0.02,
  intermediate_size: 14336,
  max_position_embeddings: 131072,
  mlp_bias: false,
  model_type: 'llama',
  num_attention_heads: 32,
  num_hidden_layers: 32,
  num_key_value_heads: 8,
  pretraining_tp: 1,
  rms_norm_eps: 1e-5,
  rope_scaling: {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
    rope_type: 'llama3',
  },
  rope_theta: 500000.0,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
  vocab_size: 128256,
}
const scaling = llama31.rope_scaling
const { rope_scaling: _, rope_theta: __, ...withoutRope } = llama31
const generation31 = {
  bos_token_id: 128000,
  do_sample: true,
  eos_token_id: [128001, 128008, 128009],
  temperature: 0.6,
  top_p: 0.9,
}

function errorOf(act: () => unknown): ModelError {
  try {
    act()
  } catch (error) {
    expect(error).toBeInstanceOf(ModelError)
    return error as ModelError
  }
  throw new Error('nothing was thrown')
}

describe('published and stored configs', () => {
  test('Llama 3.1 8B', () => {
    expect(parseConfig(llama31, generation31)).toEqual(builtinConfigs['llama3.1-8b'])
  })

  test('the same in the layout of transformers 5', () => {
    const config = { ...withoutRope, rope_parameters: { ...scaling, rope_theta: 500000.0 } }
    expect(parseConfig(config, generation31)).toEqual(builtinConfigs['llama3.1-8b'])
  })

  test('rope_scaling with the older key `type`', () => {
    const { rope_type: type, ...rest } = scaling
    expect(parseConfig({ ...llama31, rope_scaling: { ...rest, type } }, generation31)).toEqual(builtinConfigs['llama3.1-8b'])
  })

  test('llama3-32layer: rope_parameters, no scaling, stop id as a number, greedy', async () => {
    expect(await readConfig(fixture('llama3-32layer'))).toEqual({
      layers: 32,
      heads: 2,
      kvHeads: 1,
      headDim: 64,
      dim: 128,
      hidden: 256,
      vocab: 384,
      context: 512,
      ropeTheta: 500000,
      eps: 1e-5,
      tied: false,
      bos: 1,
      stopTokens: [2],
      defaults: { doSample: false, temperature: 0 },
      ignored: [],
    })
  })

  test('llama3-hd128: the older layout, rope_scaling null, head size derived', async () => {
    const config = await readConfig(fixture('llama3-hd128'))
    expect(config).toMatchObject({ headDim: 128, ropeTheta: 500000, context: 512, dim: 256 })
    expect(config).not.toHaveProperty('ropeScaling')
  })

  test('llama31-hd64-tied-sharded: scaling in rope_parameters, tied', async () => {
    const config = await readConfig(fixture('llama31-hd64-tied-sharded'))
    const ropeScaling = { factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 64 }
    expect(config).toMatchObject({ tied: true, ropeScaling, kvHeads: 2, heads: 4, headDim: 64 })
  })

  test('demo: its sampling and both stop ids', async () => {
    const defaults = { doSample: true, temperature: 0.8, topP: 0.95 }
    expect(await readConfig(fixture('demo'))).toMatchObject({ stopTokens: [4091, 4094], defaults, bos: 4090, tied: true })
  })

  test('the numbers of Llama 3 8B', () => {
    const { layers, dim, heads, kvHeads, headDim, hidden, vocab, context, ropeTheta, eps } = builtinConfigs['llama3-8b']
    expect([layers, dim, heads, kvHeads, headDim]).toEqual([32, 4096, 32, 8, 128])
    expect([hidden, vocab, context, ropeTheta, eps]).toEqual([14336, 128256, 8192, 500000, 1e-5])
    expect(hidden).toBe(1024 * Math.ceil((1.3 * (2 / 3) * 4 * dim) / 1024))
  })

  test('every built-in config is one parseConfig would make', () => {
    for (const [name, config] of Object.entries<LlamaConfig>(builtinConfigs)) {
      const s = config.ropeScaling
      const parsed = parseConfig(
        {
          ...withoutRope,
          hidden_size: config.dim,
          intermediate_size: config.hidden,
          num_hidden_layers: config.layers,
          num_attention_heads: config.heads,
          tie_word_embeddings: config.tied,
          max_position_embeddings: config.context,
          eos_token_id: config.stopTokens,
          rope_theta: 500000,
          rope_scaling: s ? { ...scaling, factor: s.factor } : null,
        },
        { do_sample: true, temperature: 0.6, top_p: 0.9 },
      )
      expect([name, parsed]).toEqual([name, config])
    }
    expect(isBuiltinConfig('llama3-8b')).toBe(true)
    expect(isBuiltinConfig('toString')).toBe(false)
  })
})

describe('what a file may leave out, add or say twice', () => {
  test('defaults of the format', () => {
    const { num_key_value_heads: _kv, mlp_bias: _bias, tie_word_embeddings: _tie, hidden_act: _act, ...old } = withoutRope
    expect(parseConfig(old)).toMatchObject({ kvHeads: 32, headDim: 128, ropeTheta: 10000, tied: false })
  })

  test('null is absent', () => {
    expect(parseConfig({ ...llama31, head_dim: null, num_key_value_heads: null, bos_token_id: null })).toMatchObject({
      headDim: 128,
      kvHeads: 32,
    })
    expect(parseConfig({ ...llama31, bos_token_id: null })).not.toHaveProperty('bos')
    expect(parseConfig({ ...llama31, bos_token_id: null }, { bos_token_id: 5 }).bos).toBe(5)
  })

  test('a head size that is not dim / heads', () => {
    expect(parseConfig({ ...llama31, head_dim: 64 }).headDim).toBe(64)
    expect(parseConfig({ ...llama31, hidden_size: 4104, head_dim: 128 }).dim).toBe(4104)
  })

  test('model_type or architectures alone', () => {
    const { model_type: _type, ...byArchitecture } = llama31
    const { architectures: _list, ...byType } = llama31
    expect(parseConfig(byArchitecture).layers).toBe(32)
    expect(parseConfig(byType).layers).toBe(32)
    expect(parseConfig({ ...byType, architectures: [] }).layers).toBe(32)
  })

  test('both layouts at once, in agreement', () => {
    expect(parseConfig({ ...llama31, rope_parameters: { ...scaling, rope_theta: 500000 } }).ropeScaling?.factor).toBe(8)
    expect(parseConfig({ ...withoutRope, rope_theta: 7, rope_parameters: { rope_type: 'default' } }).ropeTheta).toBe(7)
    expect(parseConfig({ ...withoutRope, rope_parameters: { rope_theta: 7 } }).ropeTheta).toBe(7)
  })

  test('stop ids are the union of both files, ascending', () => {
    const stops = (config: unknown, generation?: unknown) =>
      parseConfig({ ...llama31, eos_token_id: config }, generation === undefined ? undefined : { eos_token_id: generation })
        .stopTokens
    expect(stops(128001, [128009, 128001, 128008])).toEqual([128001, 128008, 128009])
    expect(stops(128001)).toEqual([128001])
    expect(stops(null, 128009)).toEqual([128009])
    expect(stops([128009, 0], 128255)).toEqual([0, 128009, 128255])
    expect(stops(null)).toEqual([])
  })

  test('sampling defaults', () => {
    const defaults = (generation?: unknown) => parseConfig(llama31, generation).defaults
    const greedy = { doSample: false, temperature: 0 }
    expect(defaults()).toEqual(greedy)
    expect(defaults({})).toEqual(greedy)
    expect(defaults({ temperature: 0.6, top_p: 0.9 })).toEqual({ ...greedy, topP: 0.9 })
    expect(defaults({ do_sample: true })).toEqual({ doSample: true, temperature: 1 })
    expect(defaults({ do_sample: true, temperature: 0.5, top_k: 40, min_p: 0.05 })).toEqual({
      doSample: true,
      temperature: 0.5,
      topK: 40,
      minP: 0.05,
    })
    expect(defaults({ do_sample: true, top_k: 0 })).not.toHaveProperty('topK')
  })

  test('auto_map is ignored and reported, as is what other engines would act on', () => {
    const config = parseConfig(
      { ...llama31, auto_map: { AutoModel: 'evil.py' }, sliding_window: 4096 },
      { ...generation31, num_beams: 4, typical_p: 1, eta_cutoff: null },
    )
    expect(config.ignored).toEqual(['config.json: auto_map', 'config.json: sliding_window', 'generation_config.json: num_beams'])
  })

  test('__proto__, constructor and inherited fields are not fields', () => {
    const text = JSON.stringify(llama31).replace('{', '{"__proto__": {"head_dim": 64, "attention_bias": true}, "constructor": 3,')
    expect(parseConfig(JSON.parse(text), generation31)).toEqual(builtinConfigs['llama3.1-8b'])
    expect({}).not.toHaveProperty('attention_bias')
    expect(errorOf(() => parseConfig(Object.create(llama31))).code).toBe('ERR_CONFIG_ARCHITECTURE')
  })
})

describe('bad configs', () => {
  const nested = { full_attention: { rope_type: 'default', rope_theta: 1e4 } }
  const cases: readonly [patch: object, code: string, ...inMessage: string[]][] = [
    [{ model_type: 'qwen2' }, 'ARCHITECTURE', '"qwen2"'],
    [
      { model_type: 'mllama', architectures: ['MllamaForConditionalGeneration'] },
      'ARCHITECTURE',
      'MllamaForConditionalGeneration',
    ],
    [{ architectures: ['LlamaForSequenceClassification'] }, 'ARCHITECTURE', 'LlamaForSequenceClassification'],
    [{ model_type: undefined, architectures: undefined }, 'ARCHITECTURE', 'model_type is missing'],
    [{ architectures: 'LlamaForCausalLM' }, 'ARCHITECTURE', '"LlamaForCausalLM"'],
    [{ hidden_size: undefined }, 'FIELD', 'hidden_size is missing'],
    [{ hidden_size: '4096' }, 'FIELD', 'hidden_size is "4096"', 'an integer from 1 to 131072'],
    [{ hidden_size: 0 }, 'FIELD', 'hidden_size is 0'],
    [{ hidden_size: -4096 }, 'FIELD', 'hidden_size is -4096'],
    [{ hidden_size: 4096.5 }, 'FIELD', 'hidden_size is 4096.5'],
    [{ hidden_size: 2 ** 18 }, 'FIELD', 'hidden_size is 262144'],
    [{ hidden_size: Number.POSITIVE_INFINITY }, 'FIELD', 'hidden_size is Infinity'],
    [{ hidden_size: Number.NaN }, 'FIELD', 'hidden_size is NaN'],
    [{ hidden_size: 4100 }, 'FIELD', 'head_dim is missing', '4100', '32'],
    [{ num_hidden_layers: undefined }, 'FIELD', 'num_hidden_layers is missing'],
    [{ num_hidden_layers: [32] }, 'FIELD', 'num_hidden_layers is [32]'],
    [{ num_hidden_layers: 1e9 }, 'FIELD', 'num_hidden_layers is 1000000000'],
    [{ num_attention_heads: undefined }, 'FIELD', 'num_attention_heads is missing'],
    [{ num_attention_heads: 0 }, 'FIELD', 'num_attention_heads is 0'],
    [{ num_key_value_heads: 5 }, 'FIELD', 'num_key_value_heads is 5', 'divisor', '32'],
    [{ num_key_value_heads: 64 }, 'FIELD', 'num_key_value_heads is 64'],
    [{ num_key_value_heads: true }, 'FIELD', 'num_key_value_heads is true'],
    [{ head_dim: 127 }, 'FIELD', 'head_dim is 127', 'even'],
    [{ head_dim: 1024 }, 'FIELD', 'head_dim is 1024'],
    [{ intermediate_size: undefined }, 'FIELD', 'intermediate_size is missing'],
    [{ intermediate_size: 1e300 }, 'FIELD', 'intermediate_size is 1e+300'],
    [{ vocab_size: undefined }, 'FIELD', 'vocab_size is missing'],
    [{ vocab_size: 2 ** 32 }, 'FIELD', 'vocab_size is 4294967296'],
    [{ max_position_embeddings: undefined }, 'FIELD', 'max_position_embeddings is missing'],
    [{ max_position_embeddings: -1 }, 'FIELD', 'max_position_embeddings is -1'],
    [{ rms_norm_eps: undefined }, 'FIELD', 'rms_norm_eps is missing'],
    [{ rms_norm_eps: 0 }, 'FIELD', 'rms_norm_eps is 0'],
    [{ rms_norm_eps: '1e-5' }, 'FIELD', 'rms_norm_eps is "1e-5"'],
    [{ tie_word_embeddings: 'false' }, 'FIELD', 'tie_word_embeddings is "false"', 'true or false'],
    [{ attention_bias: 1 }, 'FIELD', 'attention_bias is 1'],
    [{ bos_token_id: 128256 }, 'FIELD', 'bos_token_id is 128256', '128255'],
    [{ bos_token_id: [1] }, 'FIELD', 'bos_token_id is [1]'],
    [{ eos_token_id: -1 }, 'FIELD', 'eos_token_id is -1'],
    [{ eos_token_id: [128001, 128256] }, 'FIELD', 'eos_token_id is [128001,128256]'],
    [{ eos_token_id: '</s>' }, 'FIELD', 'eos_token_id is "</s>"'],
    [{ eos_token_id: [null] }, 'FIELD', 'eos_token_id is [null]'],
    [{ rope_theta: 0 }, 'FIELD', 'rope_theta is 0'],
    [{ rope_theta: '500000' }, 'FIELD', 'rope_theta is "500000"'],
    [{ rope_scaling: 8 }, 'FIELD', 'rope_scaling is 8', 'an object'],
    [{ rope_scaling: [scaling] }, 'FIELD', 'rope_scaling is [{'],
    [{ rope_scaling: { ...scaling, factor: undefined } }, 'FIELD', 'rope_scaling.factor is missing'],
    [{ rope_scaling: { ...scaling, factor: 0.5 } }, 'FIELD', 'rope_scaling.factor is 0.5'],
    [{ rope_scaling: { ...scaling, low_freq_factor: 0 } }, 'FIELD', 'rope_scaling.low_freq_factor is 0'],
    [{ rope_scaling: { ...scaling, high_freq_factor: 1 } }, 'FIELD', 'rope_scaling.high_freq_factor is 1', 'above 1'],
    [
      { rope_scaling: { ...scaling, original_max_position_embeddings: 1.5 } },
      'FIELD',
      'rope_scaling.original_max_position_embeddings',
    ],
    [{ rope_scaling: { type: 'linear', factor: 2 } }, 'ROPE', 'rope_scaling.rope_type is "linear"', '"llama3"'],
    [{ rope_scaling: { rope_type: 'yarn', factor: 2 } }, 'ROPE', '"yarn"'],
    [{ rope_scaling: { rope_type: 'dynamic', type: 'llama3', factor: 2 } }, 'ROPE', '"dynamic"'],
    [{ rope_scaling: { factor: 8 } }, 'ROPE', 'rope_type is missing'],
    [{ rope_parameters: { rope_type: 'longrope' }, rope_scaling: null }, 'ROPE', 'rope_parameters.rope_type is "longrope"'],
    [{ rope_parameters: nested, rope_scaling: null }, 'ROPE', 'full_attention'],
    [{ rope_parameters: { rope_type: 'default' } }, 'ROPE', 'rope_parameters and rope_scaling differ'],
    [{ rope_parameters: { ...scaling, rope_theta: 10000 } }, 'ROPE', '10000 and 500000'],
    [{ partial_rotary_factor: 0.5 }, 'ROPE', 'partial_rotary_factor is 0.5'],
    [{ rope_scaling: { ...scaling, partial_rotary_factor: 0.5 } }, 'ROPE', 'rope_scaling.partial_rotary_factor is 0.5'],
    [{ attention_bias: true }, 'UNSUPPORTED', 'attention_bias is true'],
    [{ mlp_bias: true }, 'UNSUPPORTED', 'mlp_bias is true'],
    [{ hidden_act: 'gelu' }, 'UNSUPPORTED', 'hidden_act is "gelu"', 'silu'],
    [{ quantization_config: { quant_method: 'awq', bits: 4 } }, 'UNSUPPORTED', '"awq"', 'bf16 checkpoint'],
    [{ compression_config: {} }, 'UNSUPPORTED', 'compression_config'],
  ]

  test.each(cases)('%j is ERR_CONFIG_%s', (patch, code, ...inMessage) => {
    const error = errorOf(() =>
      parseConfig({ ...llama31, ...patch }, generation31, { config: 'm/config.json', generation: 'm/g.json' }),
    )
    expect(error.code).toBe(`ERR_CONFIG_${code}`)
    for (const part of ['m/config.json: ', ...inMessage]) expect(error.message).toContain(part)
  })

  test.each<[generation: unknown, inMessage: string]>([
    [[], 'the whole file is []'],
    ['text', 'the whole file is "text"'],
    [{ eos_token_id: [128256] }, 'eos_token_id is [128256]'],
    [{ bos_token_id: 'x' }, ''],
    [{ do_sample: 'yes' }, 'do_sample is "yes"'],
    [{ temperature: -1 }, 'temperature is -1'],
    [{ temperature: '0.6' }, 'temperature is "0.6"'],
    [{ top_p: 0 }, 'top_p is 0'],
    [{ top_p: 1.5 }, 'top_p is 1.5'],
    [{ top_k: 2.5 }, 'top_k is 2.5'],
    [{ min_p: -0.1 }, 'min_p is -0.1'],
  ])('generation_config.json %j', (generation, inMessage) => {
    const error = errorOf(() => parseConfig({ ...llama31, bos_token_id: null }, generation))
    expect(error.code).toBe('ERR_CONFIG_FIELD')
    expect(error.message).toContain(`generation_config.json: ${inMessage}`)
  })

  test.each([null, undefined, [], 3, 'x'])('%j is not a config', config => {
    expect(errorOf(() => parseConfig(config))).toMatchObject({
      code: 'ERR_CONFIG_FIELD',
      message: expect.stringContaining('expected an object'),
    })
  })
})

describe('invFreq', () => {
  // What torch 2.13 computes with transformers' formulas, float32 little-endian in base64.
  const torch: readonly [name: string, base64: string][] = [
    [
      'llama3-8b',
      'AACAP8GKUD/G4Sk/hGMKP7x34T59q7c+456VPmHEcz6wk0Y+oMMhPqDGAz6csdY9reSuPZh4jj1nHmg9hBY9PcgIGj0/9fo8SW/MPDmJpjzDqY' +
        'c87AZdPG0NNDx/rBI8T/fuO3aqwjsClJ47NS6BOyB3Ujvccis7QaoLOxCM4zohXbk6IwCXOuoDdjqGaEg6jUEjOr/9BDqBrNg5mYGwOfjIjzlv' +
        'Qmo59NQ+OXV0GznDRf049VHOOGsSqDgP6og4xBBfOIe2NTjLBhQ4gCvxNxB2xDdpCqA3NF+CNwhoVDenBy03APQMN02l5TbHErs2p2SYNsJIeD' +
        'awQUo2/8IkNg==',
    ],
    [
      'llama3.1-8b',
      'AACAP8GKUD/G4Sk/hGMKP7x34T59q7c+456VPmHEcz6wk0Y+oMMhPqDGAz6csdY9reSuPZh4jj1nHmg9hBY9PcgIGj0/9fo8SW/MPDmJpjzDqY' +
        'c87AZdPG0NNDx/rBI8T/fuO3aqwjsClJ47NS6BOyB3UjsG/Q07HdGzOp6XYDrSlQk6CPGjOdItOzmGaMg4jUGjOL/9hDiBrFg4mYEwOPjIDzhv' +
        'Quo39NS+N3V0mzfDRX039VFON2sSKDcP6gg3xBDfNoe2tTbLBpQ2gCtxNhB2RDZpCiA2NF8CNgho1DWnB601APSMNU2lZTXHEjs1p2QYNcJI+D' +
        'SwQco0/8KkNA==',
    ],
    [
      'llama3.2-1b',
      'AACAP8bhKT+8d+E+456VPrCTRj6gxgM+reSuPWceaD3ICBo9SW/MPMOphzxtDTQ8T/fuOwKUnjsgd1I7myepOiA24Tn3mMs4jUGjN4GsWDf4yA' +
        '839NS+NsNFfTZrEig2xBDfNcsGlDUQdkQ1NF8CNacHrTRNpWU0p2QYNLBByjM=',
    ],
    [
      'llama31-hd64-tied-sharded',
      'AACAP8bhKT+8d+E+xutRPgyeoj3kVuM8reQuPGce6DvICJo7SW9MO8OpBzttDbQ6T/duOgKUHjogd9I5QaqLOSFdOTnqA/Y4jUGjOIGsWDj4yA' +
        '849NS+N8NFfTdrEig3xBDfNssGlDYQdkQ2NF8CNqcHrTVNpWU1p2QYNbBByjQ=',
    ],
  ]
  const configOf = async (name: string): Promise<LlamaConfig> =>
    isBuiltinConfig(name) ? builtinConfigs[name] : readConfig(fixture(name))

  test.each(torch)('%s has the bits of torch', async (name, base64) => {
    const config = await configOf(name)
    expect(invFreq(config)).toHaveLength(config.headDim / 2)
    expect(Buffer.from(invFreq(config).buffer).toString('base64')).toBe(base64)
  })

  test.each(torch)('%s is the formula of the paper, in double', async name => {
    const config = await configOf(name)
    const s = config.ropeScaling
    for (const [i, value] of invFreq(config).entries()) {
      const plain = Math.exp((-2 * i * Math.log(config.ropeTheta)) / config.headDim)
      let expected = plain
      if (s) {
        const turns = (s.originalContext * plain) / (2 * Math.PI) // in the original context
        const kept = Math.min(1, Math.max(0, (turns - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor)))
        expected = plain * (kept + (1 - kept) / s.factor)
      }
      expect(Math.abs(value / expected - 1)).toBeLessThan(4 * 2 ** -23)
    }
  })

  test('scaling changes the slow pairs and only those', () => {
    const plain = invFreq(builtinConfigs['llama3-8b'])
    const scaled = invFreq(builtinConfigs['llama3.1-8b'])
    expect(scaled[0]).toBe(1)
    expect(scaled.subarray(0, 29)).toEqual(plain.subarray(0, 29)) // wavelengths below 2048
    expect(scaled[29]! / plain[29]!).toBeLessThan(1)
    expect(scaled[63]! / plain[63]!).toBe(1 / 8)
  })
})
