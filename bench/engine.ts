/**
 * What the host does for a step, with a device that computes nothing: npm run bench:engine -- --prompt 512 --decode 256
 * From one start of a program to the next: scheduling, writing inputs, reading and giving out tokens, garbage collection.
 */
import { writeFileSync } from 'node:fs'
import type { Device, DeviceTensor, Program, Recorder } from '../binding.d.ts'
import { TokenRules } from '../lib/edits.ts'
import { Engine } from '../lib/engine.ts'
import { Sequence, type SequenceOptions } from '../lib/sequence.ts'
import type { Model } from '../lib/weights.ts'
import { benchOptions, environment, type Figures, median, promptOf, table } from './harness.ts'

const options = benchOptions({ prompt: 512, decode: 256, repeat: 3 })
const { config } = options
const tensor = { shape: [config.vocab, config.dim] } as unknown as DeviceTensor

/** Takes every call, copies what is written and where to, and has read at once. Its tokens are 0. */
class Idle {
  readonly activation = 'bf16'
  readonly #memory = new Uint8Array(2 ** 24)
  /** Moments at which steps were started. */
  readonly starts: number[] = []

  tensor = () => tensor
  read = async <V>(_from: DeviceTensor, into: V) => into
  copyPages = () => {}

  write(_to: DeviceTensor, from: ArrayBufferView, at?: Int32Array): void {
    this.#memory.set(new Uint8Array(from.buffer, from.byteOffset, from.byteLength))
    if (at) this.#memory.set(new Uint8Array(at.buffer, at.byteOffset, at.byteLength), from.byteLength)
  }

  record<R>(body: (op: Recorder) => R): Program<R> {
    const results = { ids: tensor, logprobs: tensor, status: tensor, chosen: tensor, topIds: tensor, top: tensor }
    const outputs = body(new Proxy({} as Recorder, { get: () => () => results }))
    return { outputs, run: () => this.starts.push(performance.now()) } as unknown as Program<R>
  }
}

const pageSize = 16
const greedy = { temperature: 0, topP: 1, topK: 0, minP: 0, seed: [0, 0] as const }
const model = { embed: tensor, layers: [], norm: tensor, head: tensor, invFreq: tensor, eps: 0 } as unknown as Model

interface Case {
  readonly batch: number
  readonly what: string
  /** Microseconds a step, of issue 4. */
  readonly target?: number
  /** Tokens of a prompt; options.prompt, if absent. */
  readonly prompt?: number
  /** They are alike, and one that begins like them, and is twice as long, waits for room. */
  readonly waits?: boolean
  readonly top?: number
  readonly rules?: () => TokenRules
  readonly options?: SequenceOptions
}
const none = {
  repetition: 1,
  frequency: 0,
  presence: 0,
  bias: new Map<number, number>(),
  minTokens: 0,
  stopTokens: new Set<number>(),
}
const penalty = () => new TokenRules({ ...none, repetition: 1.1 })
const cases: readonly Case[] = [
  { batch: 1, what: 'plain', target: 50 },
  { batch: 8, what: 'plain' },
  { batch: 64, what: 'plain' },
  { batch: 256, what: 'plain', target: 300 },
  { batch: 64, what: 'long prompts', prompt: 4096 },
  { batch: 64, what: 'very long prompts', prompt: 32768 },
  { batch: 256, what: 'long prompts', prompt: 4096 },
  { batch: 64, what: 'a long prompt waits whose beginning others use', prompt: 4096, waits: true },
  { batch: 64, what: 'one token after the other', options: { lockstep: true } },
  { batch: 64, what: 'top log-probabilities', top: 20 },
  { batch: 256, what: 'top log-probabilities', top: 20 },
  { batch: 64, what: 'repetition penalty', rules: penalty },
  { batch: 256, what: 'repetition penalty', target: 300, rules: penalty },
]

interface Times {
  /** Microseconds from step to step. */
  readonly steps: number[]
  /** Of the processor, all threads together. */
  readonly cpu: number
}

/** While all of them generate. */
async function measure({ batch, waits, prompt = options.prompt, top, rules, options: wanted }: Case): Promise<Times> {
  const device = new Idle()
  const own = Math.ceil(options.decode / pageSize) + 1
  const pages = waits ? 2 * (prompt / pageSize) + batch : batch * (prompt / pageSize + own)
  const limits = {
    context: 131072, // whatever the shape has: a row of the page table has 8192 entries
    maxSequences: 257,
    maxBatchTokens: Math.max(2048, (batch * prompt) / 128), // the last one begins while all others generate
    maxQueue: 1000,
    pageSize,
    pages,
    prefixCache: true,
    pipeline: true,
  }
  const engine = new Engine(device as unknown as Device, model, config, limits)
  let generating = 0
  let [first, last] = [0, 0]
  let [before, cpu] = [process.cpuUsage(), process.cpuUsage()]
  const generate = (i: number) =>
    new Promise<void>((resolve, reject) => {
      const sampling = { ...greedy, ...(top && { top }), ...(rules && { rules: rules() }) }
      // Pages become full in different steps.
      const length = prompt - (waits ? 0 : i % pageSize)
      const tokens = promptOf(i === batch ? 2 * length : length, config.vocab, waits ? 0 : i)
      const sequence = new Sequence(tokens, i === batch ? 1 : options.decode, sampling, wanted)
      let given = 0
      const token = () => {
        given++
        if (given === 1 && i < batch && ++generating === batch) {
          first = device.starts.length
          before = process.cpuUsage()
        }
        if (given === options.decode - 1 && last === 0) {
          last = device.starts.length
          cpu = process.cpuUsage(before)
        }
        return undefined
      }
      engine.submit({ sequence, token, end: () => resolve(), fail: reject })
    })
  await Promise.all(Array.from({ length: batch + (waits ? 1 : 0) }, (_, i) => generate(i)))
  const starts = device.starts.slice(first, last)
  return { steps: starts.slice(1).map((start, i) => 1000 * (start - starts[i]!)), cpu: (cpu.user + cpu.system) / (last - first) }
}

const rows: Figures[] = []
for (const one of cases) {
  const times: Times[] = []
  for (let i = 0; i < options.repeat; i++) times.push(await measure(one))
  const steps = times.flatMap(time => time.steps).toSorted((a, b) => a - b)
  rows.push({
    batch: one.batch,
    what: one.what,
    us_a_step: median(steps),
    slowest_of_100: steps[Math.floor(0.99 * steps.length)],
    cpu_us_a_step: median(times.map(time => time.cpu)),
    target_us: one.target,
  })
}
const json = JSON.stringify(
  { benchmark: 'engine', shape: options.shape, prompt: options.prompt, steps: rows, ...environment() },
  null,
  2,
)
if (options.out) writeFileSync(options.out, `${json}\n`)
console.log(options.json ? json : `engine, ${options.shape}, prompts of ${options.prompt} tokens\n${table(rows)}`)
