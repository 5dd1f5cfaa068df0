import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { builtinConfigs, type LlamaConfig, readConfig } from '../../lib/config.ts'
import { InputError } from '../../lib/errors.ts'
import { formatInspection, inspect } from '../../lib/inspect.ts'

const llama3 = builtinConfigs['llama3-8b']
const path = (name: string) => new URL(name === 'demo' ? '../../lib/demo' : `../fixtures/${name}`, import.meta.url).pathname
const elements = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)

/** Tensors of a folder's safetensors files, from their headers alone: [name, shape]. */
async function tensors(folder: string): Promise<[name: string, shape: number[]][]> {
  const found: [string, number[]][] = []
  for (const file of (await readdir(folder)).filter(name => /^model.*\.safetensors$/.test(name))) {
    const bytes = await readFile(join(folder, file))
    const header = JSON.parse(bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString())
    for (const [name, { shape }] of Object.entries<{ shape: number[] }>(header))
      if (name !== '__metadata__') found.push([name, shape])
  }
  return found
}

test.each([undefined, null, 5, 'llama3-8b'])('%p is no config', config => {
  const error = { name: 'InputError', code: 'ERR_ARGUMENT', message: expect.stringContaining('inspect takes a config') }
  expect(() => inspect(config as never)).toThrow(expect.objectContaining(error) as never)
})

describe('weights', () => {
  test.each<[keyof typeof builtinConfigs, number]>([
    // as Hugging Face shows them
    ['llama3-8b', 8_030_261_248],
    ['llama3.1-8b', 8_030_261_248],
    ['llama3-70b', 70_553_706_496],
    ['llama3.2-1b', 1_235_814_400],
    ['llama3.2-3b', 3_212_749_824],
  ])('%s has %d parameters', (name, parameters) => {
    expect(inspect(builtinConfigs[name]).weights).toMatchObject({ parameters, bytes: 2 * parameters })
  })

  test.each(['demo', 'llama3-32layer', 'llama3-hd128', 'llama31-hd64-tied-sharded'])(
    '%s: parts are the tensors of the file',
    async name => {
      const roles: Record<string, string> = {
        embedding: 'model.embed_tokens',
        'attention norm': 'input_layernorm',
        q: 'self_attn.q_proj',
        k: 'self_attn.k_proj',
        v: 'self_attn.v_proj',
        o: 'self_attn.o_proj',
        'FFN norm': 'post_attention_layernorm',
        gate: 'mlp.gate_proj',
        up: 'mlp.up_proj',
        down: 'mlp.down_proj',
        'final norm': 'model.norm',
        head: 'lm_head',
      }
      const stored = await tensors(path(name))
      const { parts, weights } = inspect(await readConfig(path(name)))
      expect(weights.parameters).toBe(stored.map(([, shape]) => elements(shape)).reduce((a, b) => a + b))
      for (const part of parts) {
        const own = stored.filter(([tensor]) => tensor.endsWith(`${roles[part.name]}.weight`))
        expect([part.name, own.length]).toEqual([part.name, part.count])
        for (const [, shape] of own) expect(shape).toEqual(part.shape)
      }
    },
  )

  test('a decoded token of 8B streams 15.01 GB: linears and head, not the embedding', () => {
    const { weights, parts } = inspect(llama3)
    expect(weights.streamedBytes).toBe(2 * (32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336) + 128256 * 4096))
    expect((weights.streamedBytes / 1e9).toFixed(2)).toBe('15.01')
    expect(parts.filter(part => part.streamedBytes === 0).map(part => part.name)).toEqual([
      'embedding',
      'attention norm',
      'FFN norm',
      'final norm',
    ])
  })

  test('a tied head is streamed but not stored', () => {
    const tied = inspect({ ...llama3, tied: true })
    const untied = inspect(llama3)
    expect(tied.weights.streamedBytes).toBe(untied.weights.streamedBytes)
    expect(untied.weights.parameters - tied.weights.parameters).toBe(128256 * 4096)
    expect(tied.parts.at(-1)).toMatchObject({ name: 'head', count: 0, parameters: 0, bytes: 0 })
  })

  test('KV of 8B: 131072 bytes a token, 1 GiB for the context', () => {
    expect(inspect(llama3).kv).toEqual({ bytesPerToken: 131072, contextBytes: 2 ** 30 })
  })
})

describe('the forward pass', () => {
  test('shapes of Llama 3 8B over its full context', () => {
    const { steps, tokens, past, outputs } = inspect(llama3)
    expect([tokens, past, outputs]).toEqual([8192, 0, 8192])
    const x = [8192, 4096]
    expect(steps.map(({ op, name, times, input, weight, output }) => [op, name, times, input, weight, output])).toEqual([
      ['embed', 'embedding', 1, [8192], [128256, 4096], x],
      ['rms_norm', 'attention norm', 32, x, [4096], x],
      ['linear', 'qkv', 32, x, [6144, 4096], [8192, 6144]],
      ['rope_append', 'rope, KV append', 32, [8192, 6144], undefined, x],
      ['attention', 'attention', 32, x, undefined, x],
      ['linear', 'o + residual', 32, x, [4096, 4096], x],
      ['rms_norm', 'FFN norm', 32, x, [4096], x],
      ['linear', 'gate, up', 32, x, [28672, 4096], [8192, 28672]],
      ['swiglu', 'swiglu', 32, [8192, 28672], undefined, [8192, 14336]],
      ['linear', 'down + residual', 32, [8192, 14336], [4096, 14336], x],
      ['rms_norm', 'final norm', 1, x, [4096], x],
      ['linear', 'head', 1, x, [128256, 4096], [8192, 128256]],
    ])
  })

  test('each step takes what the one before gives, in heads of any size', () => {
    const odd = { ...llama3, headDim: 64, heads: 6, kvHeads: 3, dim: 512, hidden: 96, layers: 1, vocab: 77, context: 5 }
    const { steps } = inspect(odd, { logits: 'last' })
    for (const [i, step] of steps.entries()) {
      if (i > 0) expect([step.name, step.input]).toEqual([step.name, steps[i - 1]!.output])
      if (step.op === 'linear') expect(step.weight).toEqual([step.output[1], step.input[1]])
    }
    expect(steps.find(step => step.name === 'qkv')?.weight).toEqual([12 * 64, 512])
    expect(steps.find(step => step.name === 'o + residual')?.weight).toEqual([512, 384])
    expect(steps.filter(step => step.inLayer)).toHaveLength(9)
  })

  test('13.96 GFLOP a token are the linears of the layers; with the head it is 15.01', () => {
    const { perToken, totals } = inspect(llama3)
    expect((perToken.linearFlops / 1e9).toFixed(2)).toBe('13.96')
    expect(perToken.headFlops).toBe(2 * 128256 * 4096)
    expect(((perToken.linearFlops + perToken.headFlops) / 1e9).toFixed(2)).toBe('15.01')
    expect(perToken.linearFlops + perToken.headFlops).toBe(inspect(llama3).weights.streamedBytes) // 2 FLOP, 2 bytes a weight
    expect(totals.linearFlops).toBe(8192 * perToken.linearFlops)
    expect(totals.headFlops).toBe(8192 * perToken.headFlops)
  })

  test('causal attention is 4 x dim x (S / 2) x 32 a token, and half a key more', () => {
    const S = 8192
    const { totals } = inspect(llama3)
    expect(totals.attentionFlops / S - 4 * 4096 * (S / 2) * 32).toBe((4 * 4096 * 32) / 2)
    let counted = 0
    for (let position = 0; position < S; position++) counted += 2 * 2 * 32 * 128 * (position + 1) // q k^T and p v
    expect(totals.attentionFlops).toBe(32 * counted)
  })

  test('in pieces it is the same work', () => {
    const whole = inspect(llama3, { tokens: 300 }).totals
    const pieces = [
      inspect(llama3, { tokens: 100 }),
      inspect(llama3, { tokens: 199, past: 100 }),
      inspect(llama3, { tokens: 1, past: 299 }),
    ]
    for (const key of ['flops', 'linearFlops', 'headFlops', 'attentionFlops', 'otherFlops'] as const) {
      expect([key, pieces.reduce((total, piece) => total + piece.totals[key], 0)]).toEqual([key, whole[key]])
    }
    const activations = pieces.reduce((total, piece) => total + piece.totals.bytes.activations, 0)
    expect(activations).toBe(whole.bytes.activations)
  })

  test('totals are the sums of their kinds', () => {
    const { totals, steps } = inspect(llama3, { tokens: 77, past: 5, logits: 'last' })
    expect(totals.linearFlops + totals.headFlops + totals.attentionFlops + totals.otherFlops).toBe(totals.flops)
    expect(totals.otherFlops / totals.flops).toBeLessThan(0.001)
    expect(totals.otherFlops).toBeGreaterThan(0)
    const kv = steps.map(step => step.times * step.bytes.kv).reduce((a, b) => a + b)
    expect(totals.bytes.kv).toBe(kv)
    expect(kv).toBe(131072 * (77 + 82)) // written by 77, read of 82
  })

  test('a step of decoding moves the streamed weights, the norms and one embedding row, the KV, and little else', () => {
    const { totals, weights } = inspect(llama3, { tokens: 1, past: 8191 })
    expect(totals.bytes.weights).toBe(weights.streamedBytes + 2 * 65 * 4096 + 2 * 4096)
    expect(totals.bytes.kv).toBe(131072 * 8193)
    expect(totals.bytes.activations / totals.bytes.weights).toBeLessThan(0.001)
  })

  test('bytes of single steps, by hand', () => {
    const steps = inspect(llama3, { tokens: 10, past: 6, logits: 'last' }).steps
    const bytes = (name: string) => steps.find(step => step.name === name)?.bytes
    expect(bytes('embedding')).toEqual({ weights: 81920, activations: 40 + 163840, kv: 0 })
    expect(bytes('attention norm')).toEqual({ weights: 8192, activations: 10 * 4096 * 6, kv: 0 })
    expect(bytes('qkv')).toEqual({ weights: 2 * 6144 * 4096, activations: 10 * (8192 + 12288), kv: 0 })
    expect(bytes('rope, KV append')).toEqual({ weights: 0, activations: 10 * (12288 + 8192), kv: 10 * 4096 })
    expect(bytes('attention')).toEqual({ weights: 0, activations: 10 * (8192 + 8192), kv: 16 * 4096 })
    expect(bytes('o + residual')).toEqual({ weights: 2 * 4096 * 4096, activations: 10 * (8192 + 16384 + 16384), kv: 0 })
    expect(bytes('swiglu')).toEqual({ weights: 0, activations: 10 * 2 * (28672 + 14336), kv: 0 })
    expect(bytes('last row')).toEqual({ weights: 0, activations: 32768, kv: 0 })
    expect(bytes('head')).toEqual({ weights: 2 * 128256 * 4096, activations: 8192 + 4 * 128256, kv: 0 })
  })

  test('only the last row through the head, as generation does', () => {
    const last = inspect(llama3, { logits: 'last' })
    expect(last.outputs).toBe(1)
    expect(last.steps.slice(-3).map(step => [step.op, step.output])).toEqual([
      ['select_rows', [1, 4096]],
      ['rms_norm', [1, 4096]],
      ['linear', [1, 128256]],
    ])
    expect(last.totals.headFlops).toBe(inspect(llama3).totals.headFlops / 8192)
  })

  test.each([
    { tokens: 0 },
    { tokens: 1.5 },
    { tokens: 8193 },
    { tokens: Number.NaN },
    { past: -1 },
    { past: 8192 },
    { tokens: 2, past: 8191 },
  ])('%j is refused', options => {
    expect(() => inspect(llama3, options)).toThrow(InputError)
    expect(() => inspect(llama3, options)).toThrow(
      expect.objectContaining({ code: 'ERR_OPTION_TOKENS', message: expect.stringContaining('8192') }),
    )
  })

  test('the largest config that is accepted stays exact', () => {
    const size = { layers: 2 ** 9, heads: 2 ** 10, kvHeads: 2 ** 10, headDim: 2 ** 9, dim: 2 ** 17, hidden: 2 ** 19 }
    const { weights, kv } = inspect({ ...llama3, ...size, vocab: 2 ** 22, context: 2 ** 22 })
    for (const value of Object.values({ ...weights, ...kv })) expect(Number.isSafeInteger(value)).toBe(true)
    expect(kv.contextBytes).toBe(2 ** 52)
  })
})

describe('formatInspection', () => {
  const text = formatInspection(inspect(llama3))

  test.each<[string, LlamaConfig]>(Object.entries(builtinConfigs))(
    '%s: ASCII, at most 100 columns, nothing undefined',
    (_, config) => {
      for (const options of [{}, { tokens: 1, past: 100 }, { logits: 'last' }] as const) {
        const page = formatInspection(inspect(config, options))
        expect(page).toMatch(/^[\x20-\x7e\n]*\n$/)
        expect(page).not.toMatch(/undefined|NaN|Infinity| \n/)
        expect(Math.max(...page.split('\n').map(line => line.length))).toBeLessThanOrEqual(100)
      }
    },
  )

  test('the columns of a table end together', () => {
    const rows = text.split('\n').filter(line => /FLOP +[\d.]+ [kMGT]?B$/.test(line))
    expect(rows).toHaveLength(13)
    expect(new Set(rows.map(row => row.length)).size).toBe(1)
    expect(new Set(rows.map(row => row.indexOf('FLOP') + 4)).size).toBe(1)
  })

  test.each([
    '32 layers, dim 4096, 32 heads on 8 KV heads of 128, FFN 14336',
    '8,030,261,248  16.06 GB  100.0%',
    'A decoded token streams 15.01 GB',
    '13.96 GFLOP in linears and 1.05 GFLOP in the head',
    '131,072 bytes a token, 1.07 GB (1.00 GiB) for the full context',
    'FORWARD PASS over 8192 tokens',
    '[8192, 28672]                   [8192, 14336]',
    'only the last row through the head: 1.05 GFLOP there, not 8.61 TFLOP',
    '1 GB = 10^9 bytes',
  ])('says "%s"', line => {
    expect(text).toContain(line)
  })

  test('a tied head, llama3 scaling and one token are said so', () => {
    const page = formatInspection(inspect(builtinConfigs['llama3.2-1b'], { tokens: 1, past: 8191 }))
    for (const part of ['(tied)', 'the embedding\n', 'llama3 scaling x32 over 8192', 'over 1 token after 8191 in the cache']) {
      expect(page).toContain(part)
    }
    expect(page).not.toContain('Generation puts')
  })

  test('numbers at the edge of a unit', () => {
    const one = { ...llama3, layers: 1, dim: 2, heads: 1, kvHeads: 1, headDim: 2, hidden: 1, vocab: 2, context: 4 }
    expect(formatInspection(inspect(one))).toContain('KV cache in bf16: 8 bytes a token, 32 B for the full context.')
    expect(formatInspection(inspect({ ...one, vocab: 249999 }))).toMatch(/embedding .* 499,998 +1\.00 MB/) // 999,996 bytes
  })
})
