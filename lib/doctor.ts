/** What this machine has, why a device is not used, and whether every operation computes right on those that are. */
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import type { BF16, Device, DeviceName, DeviceReport, DeviceTensor, F32, GpuSoftware, KvLayer } from '../binding.d.ts'
import type { LlamaConfig } from './config.ts'
import { devices, gpuSoftware, open } from './native.ts'
import { version } from './package.ts'
import { StepBuffers } from './step.ts'
import { randomModel } from './weights.ts'

/** One operation on one device, against the same in float32 on the CPU. */
export interface OpCheck {
  readonly op: string
  /** Norm of the difference over norm of the reference. */
  readonly error: number
  readonly ok: boolean
}

/** A device: whether it can be used and why not; of those that can, how the self-test went. */
export interface DeviceDiagnosis extends DeviceReport {
  readonly checks?: readonly OpCheck[]
  /** Of the whole self-test, loading the device included. */
  readonly milliseconds?: number
  /** Why the self-test could not be finished. */
  readonly failure?: string
}

/** Everything that a report of a problem should say. */
export interface Diagnosis {
  readonly cria: string
  readonly node: string
  readonly system: string
  readonly cpu: { readonly model: string; readonly cores: number; readonly features: readonly string[] }
  /** Bytes. */
  readonly memory: number
  /** The NVIDIA driver and the plug-in. */
  readonly gpu: GpuSoftware
  readonly devices: readonly DeviceDiagnosis[]
}

/** simt: the emulated GPU too, which is slow and for tests. Takes seconds. Throws nothing: what fails is in the result. */
export async function diagnose({ simt = false }: { simt?: boolean } = {}): Promise<Diagnosis> {
  const reports: DeviceReport[] = [...devices()]
  if (simt) reports.push({ device: 'simt', available: true, reason: 'the kernels of the GPU on emulated threads' })
  const diagnoses: DeviceDiagnosis[] = []
  for (const report of reports) diagnoses.push(report.available ? await examine(report) : report)
  const [first] = cpus()
  return {
    cria: version,
    node: process.version,
    system: `${process.platform} ${release()} ${process.arch}`,
    cpu: { model: first?.model ?? 'unknown', cores: cpus().length, features: cpuFeatures() },
    memory: totalmem(),
    gpu: gpuSoftware(),
    devices: diagnoses,
  }
}

// One layer of a small Llama with random weights, every operation of it, prefill of 33 tokens in pages of 16.
const config: LlamaConfig = {
  layers: 1,
  heads: 8,
  kvHeads: 2,
  headDim: 64,
  dim: 512,
  hidden: 1536,
  vocab: 4096,
  context: 64,
  ropeTheta: 500000,
  eps: 1e-5,
  tied: false,
  stopTokens: [],
  defaults: { doSample: false, temperature: 0 },
  ignored: [],
}
const tokens = Array.from({ length: 33 }, (_, i) => (i * 997) % config.vocab)
const pages = [2, 0, 1]

/** bf16 keeps 8 bits (2^-9 a rounding); some ten roundings lie between the embedding and the logits. */
const tolerance = 0.02

async function examine(report: DeviceReport): Promise<DeviceDiagnosis> {
  const started = performance.now()
  try {
    const found = await outputs(report.device as DeviceName)
    const milliseconds = performance.now() - started
    const expected = await outputs('cpu', 'f32')
    const checks = Object.entries(expected).map(([op, reference]) => {
      const error = relativeError(found[op]!, reference)
      return { op, error, ok: error <= tolerance }
    })
    return { ...report, checks, milliseconds }
  } catch (error) {
    return { ...report, failure: (error as Error).message }
  }
}

/** The result of every operation, by its name; of the three kinds of linear each. */
async function outputs(name: DeviceName, activations?: 'f32'): Promise<Record<string, Float64Array>> {
  using device = open(name, { activations })
  const model = randomModel(device, config)
  const [layer] = model.layers
  const cache = () => device.tensor(device.activation, [pages.length, config.kvHeads, 16, config.headDim]) as KvLayer['k']
  const kv = { k: cache(), v: cache() }
  const bucket = { tokens: tokens.length, seqs: 1, outputs: tokens.length, maxPages: pages.length }
  const buffers = new StepBuffers(device, bucket)
  const program = device.record(op => {
    const embed = op.embed(model.embed, buffers.step)
    const rmsNorm = op.rmsNorm(embed, layer!.attnNorm, config.eps)
    const linear = op.linear(rmsNorm, layer!.wqkv)
    const ropeAppend = op.ropeAppend(linear, kv, buffers.step, model.invFreq)
    const attention = op.attention(ropeAppend, kv, buffers.step)
    const added = op.linear(attention, layer!.wo, { add: embed })
    const swiglu = op.swiglu(op.linear(op.rmsNorm(added, layer!.ffnNorm, config.eps), layer!.wGateUp))
    const selectRows = op.selectRows(op.linear(swiglu, layer!.wDown, { add: added }), buffers.step)
    const logits = op.linear(op.rmsNorm(selectRows, model.norm, config.eps), model.head, { as: 'f32' })
    const { logprobs } = op.sample(logits, buffers.sampling)
    return { embed, rmsNorm, linear, ropeAppend, attention, added, swiglu, selectRows, logits, sample: logprobs }
  })
  buffers.writeEvaluation(tokens, 0, tokens.length, pages, 16)
  program.run()
  const read = await Promise.all(
    Object.entries(program.outputs).map(async ([op, tensor]) => [op, await values(device, tensor as BF16 | F32)] as const),
  )
  return Object.fromEntries(read)
}

async function values(device: Device, tensor: DeviceTensor): Promise<Float64Array> {
  const count = tensor.shape.reduce((a, b) => a * b)
  if (tensor.dtype === 'f32') return Float64Array.from(await device.read(tensor, new Float32Array(count)))
  const halves = Uint32Array.from(await device.read(tensor, new Uint16Array(count)), bits => bits * 65536)
  return Float64Array.from(new Float32Array(halves.buffer))
}

/** Infinity where something is not a number. */
function relativeError(found: Float64Array, expected: Float64Array): number {
  let [difference, size] = [0, 0]
  for (const [i, value] of expected.entries()) {
    difference += (found[i]! - value) ** 2
    size += value ** 2
  }
  const error = Math.sqrt(difference / size)
  return Number.isNaN(error) ? Number.POSITIVE_INFINITY : error
}

/** Of those that kernels use; none where the system does not say. */
function cpuFeatures(): string[] {
  const used = ['avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512dq', 'avx512vl', 'avx512_bf16']
  try {
    const flags =
      readFileSync('/proc/cpuinfo', 'utf8')
        .match(/^flags\s*:(.*)$/m)?.[1]
        ?.split(' ') ?? []
    return used.filter(name => flags.includes(name))
  } catch {
    return []
  }
}
