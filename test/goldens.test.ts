// The models of test/fixtures and the demo against transformers in float32 (DESIGN.md, section 7), on every instruction set.
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { SHARE_ENV, Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import type { DeviceTensor, KvLayer, Recorder } from '../binding.d.ts'
import { readConfig } from '../lib/config.ts'
import { logits as forward } from '../lib/forward.ts'
import { Llama } from '../lib/llama.ts'
import { devices, open } from '../lib/native.ts'
import { StepBuffers } from '../lib/step.ts'
import { loadModel } from '../lib/weights.ts'

interface GoldenPrompt {
  readonly prompt: number[]
  /** Tokens that transformers chose after the prompt, and by how much each logit led. */
  readonly greedy: number[]
  readonly greedy_margin: number[]
  /** What transformers itself loses in bf16: the allowance. */
  readonly bf16_relative_error: number
}
interface Golden {
  readonly prompts: GoldenPrompt[]
  readonly heldout_tokens: number[]
  readonly heldout_nll: number
}
interface Case extends Golden {
  readonly name: string
  readonly folder: string
  readonly tensors: ReadonlyMap<string, Float32Array>
}

const here = import.meta.dirname
const readCase = async (name: string): Promise<Case> => {
  const fixture = join(here, 'fixtures', name)
  const bytes = await readFile(join(fixture, 'golden.safetensors'))
  const start = 8 + Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.toString('utf8', 8, start)) as Record<string, { data_offsets: [number, number] }>
  const tensors = Object.entries(header).map(([tensor, { data_offsets: at }]) => {
    const data = new Uint8Array(bytes.subarray(start + at[0], start + at[1])) // a copy, aligned
    return [tensor, new Float32Array(data.buffer)] as const
  })
  const golden = JSON.parse(await readFile(join(fixture, 'golden.json'), 'utf8')) as Golden
  const folder = name === 'demo' ? join(here, '../lib/demo') : fixture
  return { ...golden, name, folder, tensors: new Map(tensors) }
}
const cases = await Promise.all(['llama3-32layer', 'llama3-hd128', 'llama31-hd64-tied-sharded', 'demo'].map(readCase))

// jest looks globals up slowly, and the loops below run over millions of logits.
const { abs, exp, log, sqrt } = Math

/** Norm of the difference over norm of the reference. */
function relativeError(actual: Float32Array, expected: Float32Array): number {
  expect(actual.length).toBe(expected.length)
  let difference = 0
  let reference = 0
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2
    reference += expected[i]! ** 2
  }
  return sqrt(difference / reference)
}

function argmax(row: Float32Array): number {
  let best = 0
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i
  return best
}

function largest(row: Float32Array): number {
  let most = 0
  for (let i = 0; i < row.length; i++) if (abs(row[i]!) > most) most = abs(row[i]!)
  return most
}

/** -log of the probability that softmax gives an id. */
function surprise(row: Float32Array, id: number): number {
  const most = row[argmax(row)]!
  let sum = 0
  for (let i = 0; i < row.length; i++) sum += exp(row[i]! - most)
  return most + log(sum) - row[id]!
}

const digest = (values: Float32Array): string => createHash('sha256').update(values).digest('hex')

/** Where the golden lead is larger than twice what bf16 may move a logit of these rows. */
function certain(golden: GoldenPrompt, rows: readonly Float32Array[]): boolean[] {
  return rows.map((row, i) => golden.greedy_margin[i]! > 2 * golden.bf16_relative_error * largest(row))
}

/** jest's process.env is a copy; the addon reads the environment of the process, which a thread may share. '': not set. */
async function setVariable(name: string, value: string): Promise<void> {
  const code = value === '' ? `delete process.env.${name}` : `process.env.${name} = '${value}'`
  const worker = new Worker(code, { eval: true, env: SHARE_ENV })
  await new Promise(resolve => worker.on('exit', resolve))
}
const setInstructionSet = (name: string) => setVariable('CRIA_CPU', name)

/** Why a set cannot run here; undefined when it can. */
async function obstacle(name: string): Promise<string | undefined> {
  await setInstructionSet(name)
  try {
    using device = open('cpu', { threads: 1 })
    if (!device.description.includes(`(${name},`)) throw new Error(`CRIA_CPU is ${name}, but got ${device.description}`)
    return undefined
  } catch (error) {
    if (/^CRIA_CPU is \w+, which this processor does not support/.test((error as Error).message)) return (error as Error).message
    throw error
  } finally {
    await setInstructionSet('')
  }
}

const measured: string[] = []
afterAll(() => {
  process.stderr.write(`goldens, error / allowance:\n${measured.join('\n')}\n`)
})

/** What a model says of every prompt, to the bit: logits with the golden history, then tokens of its own. */
type Said = { readonly logits: string; readonly tokens: readonly number[]; readonly logprobs: readonly number[] }[]

/** Logits and greedy tokens of every prompt, generating at most `most` tokens freely. */
async function staysWithinAllowance(llama: Llama, golden: Case, label: string, most = 1e9): Promise<Said> {
  const { vocab } = llama.config
  const ratios: number[] = []
  const said: Said = []
  for (const [p, one] of golden.prompts.entries()) {
    const actual = await llama.logits([...one.prompt, ...one.greedy.slice(0, -1)])
    const error = relativeError(actual.subarray(0, one.prompt.length * vocab), golden.tensors.get(`prompt${p}.logits`)!)
    ratios.push(error / one.bf16_relative_error)

    const row = (i: number) => actual.subarray((one.prompt.length - 1 + i) * vocab).subarray(0, vocab)
    const rows = one.greedy.map((_, i) => row(i))
    const sure = certain(one, rows)
    expect(sure.filter(Boolean).length).toBeGreaterThan(0)
    const wrong = one.greedy.flatMap((id, i) => (sure[i] && argmax(rows[i]!) !== id ? [i] : []))
    expect(wrong).toEqual([])

    const maxTokens = Math.min(most, one.greedy.length)
    const free = await llama.generate(one.prompt, { temperature: 0, ignoreEos: true, maxTokens })
    const until = sure.includes(false) ? sure.indexOf(false) : sure.length
    expect(free.tokens.slice(0, until)).toEqual(one.greedy.slice(0, Math.min(until, maxTokens)))
    said.push({ logits: digest(actual), tokens: free.tokens, logprobs: free.logprobs })
  }
  measured.push(`${label.padEnd(6)} ${golden.name.padEnd(26)} ${ratios.map(r => r.toFixed(3)).join(' ')}`)
  expect(Math.max(...ratios)).toBeLessThanOrEqual(1)
  return said
}

for (const set of ['scalar', 'avx2', 'avx512', 'avx512bf16']) {
  const why = await obstacle(set)
  const group = why === undefined ? describe : describe.skip
  group(`instruction set: ${set}${why === undefined ? '' : ` (${why})`}`, () => {
    beforeAll(() => setInstructionSet(set))
    afterAll(() => setInstructionSet(''))

    test.each(cases)('$name in bf16: no further from float32 than transformers in bf16', async golden => {
      await using llama = await Llama.load(golden.folder, { device: 'cpu', threads: 1 })
      expect(llama.device).toContain(set)
      await staysWithinAllowance(llama, golden, set)
    })

    test.each(cases)('$name in f32: logits and all hidden states to 1e-5', async golden => {
      await using llama = await Llama.load(golden.folder, { device: 'cpu', threads: 1, activations: 'f32' })
      const errors: number[] = []
      for (const [p, one] of golden.prompts.entries()) {
        errors.push(relativeError(await llama.logits(one.prompt), golden.tensors.get(`prompt${p}.logits`)!))
        const free = await llama.generate(one.prompt, { temperature: 0, ignoreEos: true, maxTokens: one.greedy.length })
        const until = one.greedy_margin.findIndex(margin => margin < 1e-3)
        expect(free.tokens.slice(0, until >>> 0)).toEqual(one.greedy.slice(0, until >>> 0))
        const hidden = golden.tensors.get(`prompt${p}.hidden`)
        if (hidden) errors.push(...(await hiddenErrors(golden, one.prompt, hidden)))
      }
      measured.push(`${set.padEnd(6)} ${golden.name.padEnd(26)} f32: ${Math.max(...errors).toExponential(1)} of 1e-5`)
      expect(Math.max(...errors)).toBeLessThan(1e-5)
    })
  })
}

// The GPU's kernels through the whole engine, on emulated threads and on every GPU that is there.
const gpus = devices().filter(({ device, available }) => device.startsWith('cuda:') && available)
describe.each([
  { device: 'simt', settings: 'copies=late,arch=90', most: 12 },
  { device: 'simt', settings: 'copies=early,arch=120', most: 12 },
  ...gpus.map(({ device }) => ({ device, settings: '', most: 1e9 })),
])('$device $settings', ({ device, settings, most }) => {
  beforeAll(() => setVariable('CRIA_SIMT', settings))
  afterAll(() => setVariable('CRIA_SIMT', ''))

  test.each(cases)(
    '$name: no further from float32 than transformers in bf16, the same tokens, and the same bits without fusion',
    async golden => {
      const options = { device, contextLength: 192, maxSequences: 2 }
      await using llama = await Llama.load(golden.folder, options)
      expect(llama.device).toContain(settings)
      const said = await staysWithinAllowance(llama, golden, device, most)
      await using unfused = await Llama.load(golden.folder, { ...options, fuse: false })
      const few = Math.min(most, 4)
      const first = said.map(one => ({ ...one, tokens: one.tokens.slice(0, few), logprobs: one.logprobs.slice(0, few) }))
      expect(await staysWithinAllowance(unfused, golden, `${device} unfused`, few)).toEqual(first)
    },
    120_000,
  )

  // On emulated threads for one model only: each page size takes seconds.
  test.each(device === 'simt' ? cases.slice(1, 2) : cases)(
    '$name: the same bits in any page size and batch',
    async golden => {
      const prompts = golden.prompts.map(one => one.prompt)
      const options = { temperature: 0, ignoreEos: true, maxTokens: 4 }
      let expected: unknown
      for (const pageSize of [16, 1, 5]) {
        await using llama = await Llama.load(golden.folder, { device, pageSize, contextLength: 192, maxSequences: 8 })
        const alone = []
        for (const prompt of prompts) alone.push(await llama.generate(prompt, options))
        expected ??= alone
        expect(alone).toEqual(expected)
        expect(await Promise.all(prompts.map(prompt => llama.generate(prompt, options)))).toEqual(alone)
      }
    },
    120_000,
  )
})

/** Relative error of the embedding, of the residual stream after every layer, and of the final norm. */
async function hiddenErrors(golden: Case, prompt: readonly number[], expected: Float32Array): Promise<number[]> {
  const config = await readConfig(golden.folder)
  using device = open('cpu', { threads: 1, activations: 'f32' })
  const model = await loadModel(device, golden.folder, config)
  const pageSize = 16
  const pages = Array.from({ length: Math.ceil(prompt.length / pageSize) }, (_, i) => i).reverse()
  const cache = () => device.tensor(device.activation, [pages.length, config.kvHeads, pageSize, config.headDim])
  const kv = Array.from({ length: config.layers }, () => ({ k: cache(), v: cache() })) as unknown as KvLayer[]
  const size = { tokens: prompt.length, seqs: 1, outputs: prompt.length, maxPages: pages.length }
  const buffers = new StepBuffers(device, size)
  // What the body returns stays outside the arena, so every state can be read afterwards.
  const program = device.record(op => {
    const stream: DeviceTensor[] = []
    let norm: DeviceTensor | undefined
    const tapped = {
      embed: (...args: Parameters<Recorder['embed']>) => keep(op.embed(...args)),
      rmsNorm: (...args: Parameters<Recorder['rmsNorm']>) => {
        const y = op.rmsNorm(...args)
        norm = y
        return y
      },
      linear: (x: never, weight: never, options?: { add?: unknown }) => {
        const y = op.linear(x, weight, options as never) as DeviceTensor
        return options?.add ? keep(y) : y
      },
      ropeAppend: (...args: Parameters<Recorder['ropeAppend']>) => op.ropeAppend(...args),
      attention: (...args: Parameters<Recorder['attention']>) => op.attention(...args),
      swiglu: (...args: Parameters<Recorder['swiglu']>) => op.swiglu(...args),
      selectRows: (...args: Parameters<Recorder['selectRows']>) => op.selectRows(...args),
    }
    const keep = <T extends DeviceTensor>(tensor: T): T => {
      stream.push(tensor)
      return tensor
    }
    forward(tapped as unknown as Recorder, model, kv, buffers.step)
    const layers = stream.filter((_, i) => i % 2 === 0) // the embedding, then attention and feed-forward add in turn
    return [...layers.slice(0, -1), norm!]
  })
  buffers.writeEvaluation(prompt, 0, prompt.length, pages, pageSize)
  program.run()
  const each = prompt.length * config.dim
  const states = await Promise.all(program.outputs.map(tensor => device.read(tensor, new Float32Array(each))))
  expect(states.length).toBe(config.layers + 1)
  const errors = states.map((state, i) => relativeError(state, expected.subarray(i * each, (i + 1) * each)))
  expect(errors[0]).toBe(0) // the embedding is copied
  return errors
}

describe('the same bits', () => {
  const greedy = { temperature: 0, ignoreEos: true, maxTokens: 12 }
  test.each(cases)(
    '$name: in pages of 1, 5, 16 tokens and one page a sequence, on 1 to 3 threads, alone and among others',
    async golden => {
      const prompts = golden.prompts.map(one => one.prompt)
      let expected: unknown
      for (const [pageSize, threads] of [[16], [1, 1], [5, 3], [2 ** 20, 2]] as const) {
        await using llama = await Llama.load(golden.folder, { pageSize, threads, contextLength: 192, maxSequences: 8 })
        expect(llama.stats().pages.size).toBe(Math.min(pageSize, 192))
        const alone = []
        for (const prompt of prompts) {
          const { tokens, logprobs } = await llama.generate(prompt, greedy)
          alone.push({ tokens, logprobs, logits: digest(await llama.logits(prompt)) })
        }
        expected ??= alone
        expect(alone).toEqual(expected)
        const together = await Promise.all([...prompts, ...prompts].map(prompt => llama.generate(prompt, greedy)))
        const both = [...alone, ...alone].map(({ tokens, logprobs }) => ({ tokens, logprobs }))
        expect(together.map(({ tokens, logprobs }) => ({ tokens, logprobs }))).toEqual(both)
      }
    },
  )
})

describe('held-out text', () => {
  const demo = cases.at(-1)!
  test.each([
    { activations: 'f32' as const, allowed: 1e-5 },
    { activations: 'bf16' as const, allowed: Math.min(...demo.prompts.map(one => one.bf16_relative_error)) },
  ])('the demo in $activations is surprised as much as the reference is', async ({ activations, allowed }) => {
    await using llama = await Llama.load('demo', { activations })
    const { vocab } = llama.config
    const tokens = demo.heldout_tokens
    const logits = await llama.logits(tokens)
    let sum = 0
    for (let i = 0; i + 1 < tokens.length; i++) {
      sum += surprise(logits.subarray(i * vocab, (i + 1) * vocab), tokens[i + 1]!)
    }
    const nll = sum / (tokens.length - 1)
    measured.push(`held-out, ${activations}: ${nll}, reference ${demo.heldout_nll}`)
    expect(Math.abs(nll / demo.heldout_nll - 1)).toBeLessThan(allowed)
  })
})
