/** What this machine has, why a device is not used, and whether every operation computes right on those that are. */
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import type { Device, DeviceName, DeviceReport, DeviceTensor, DType, GpuSoftware, KvLayer } from '../binding.d.ts'
import type { LlamaConfig } from './config.ts'
import { type CriaError, DeviceError } from './errors.ts'
import { devices, gpuSoftware, open } from './native.ts'
import { version } from './package.ts'
import { StepBuffers } from './step.ts'
import { randomModel } from './weights.ts'

/** One operation on one device, against the same in float32 on the CPU. */
export interface OpCheck {
  readonly step: SelfTestStep
  readonly op: string
  /** Norm of the difference over norm of the reference; of drawn ids, the share that differs. */
  readonly error: number
  readonly ok: boolean
}

/** 33 tokens at once; one token that sees 301 keys; ids drawn from given logits with temperature, top-k and top-p. */
export type SelfTestStep = 'prefill' | 'decode' | 'draw'

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

// One layer of a small Llama with random weights. Its logits are sampled greedily; draws get the same logits everywhere,
// because rounding may change which id is drawn.
const config: LlamaConfig = {
  layers: 1,
  heads: 8,
  kvHeads: 2,
  headDim: 64,
  dim: 512,
  hidden: 1536,
  vocab: 4096,
  context: 304,
  ropeTheta: 500000,
  eps: 1e-5,
  tied: false,
  stopTokens: [],
  defaults: { doSample: false, temperature: 0 },
  ignored: [],
}
const tokens = Array.from({ length: 301 }, (_, i) => (i * 997) % config.vocab)
// Positions. The second step sees more keys than the 256 of one split of attention.
const steps = { prefill: [0, 33], decode: [300, 301] } as const
const pageSize = 16
const pages = Array.from({ length: 19 }, (_, i) => (i * 7) % 19)
const draws = 32

/** bf16 keeps 8 bits (2^-9 a rounding); some ten roundings lie between the embedding and the logits. */
const tolerance = 0.02

/** Bytes of device memory that the self-test takes at most: 18 MB of weights, then caches, results and workspaces. */
const needed = 32e6

async function examine(report: DeviceReport): Promise<DeviceDiagnosis> {
  const started = performance.now()
  try {
    const found = await results(report.device as DeviceName)
    const milliseconds = performance.now() - started
    const expected = await results('cpu', 'f32')
    const checks = expected.map(({ step, op, values }, i) => {
      const error = op === 'ids' ? share(found[i]!.values, values) : relativeError(found[i]!.values, values)
      return { step, op, error, ok: error <= tolerance }
    })
    return { ...report, checks, milliseconds }
  } catch (error) {
    const { code, message } = error as CriaError
    const takes = `the self-test takes ${megabytes(needed)}; end what else uses this device`
    return { ...report, failure: code === 'ERR_OUT_OF_MEMORY' ? `no memory: ${message}; ${takes}` : message }
  }
}

interface Result {
  readonly step: SelfTestStep
  readonly op: string
  readonly values: Float64Array
}

/** The result of every operation in every step; of the kinds of linear each. */
async function results(name: DeviceName, activations?: 'f32'): Promise<Result[]> {
  using device = open(name, { activations })
  if (device.freeMemory < needed)
    throw new DeviceError('ERR_OUT_OF_MEMORY', `${name} has ${megabytes(device.freeMemory)} that cria can use`)
  const model = randomModel(device, config)
  const [layer] = model.layers
  const kv = { k: cache(device, 1), v: cache(device, 2) }
  const all: Result[] = []
  const collect = async (step: SelfTestStep, outputs: Record<string, DeviceTensor>) => {
    for (const [op, tensor] of Object.entries(outputs)) all.push({ step, op, values: await read(device, tensor) })
  }
  for (const [step, [from, to]] of Object.entries(steps)) {
    const count = to - from
    const buffers = new StepBuffers(device, { tokens: count, seqs: 1, outputs: count, maxPages: pages.length })
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
    buffers.writeEvaluation(tokens, from, to, pages, pageSize)
    program.run()
    await collect(step as SelfTestStep, program.outputs)
  }
  const drawn = device.record(op => {
    const each = (value: (row: number) => number) => Array.from({ length: draws }, (_, row) => value(row))
    const logits = put(
      device,
      'f32',
      [draws, config.vocab],
      Float32Array.from(noise(draws * config.vocab, 3), x => 8 * x),
    )
    const { ids, logprobs } = op.sample(logits, {
      temperature: put(device, 'f32', [draws], new Float32Array(draws).fill(0.8)),
      topP: put(device, 'f32', [draws], Float32Array.from(each(row => (row % 3 ? 0.9 : 1)))),
      minP: put(device, 'f32', [draws], new Float32Array(draws)),
      topK: put(device, 'i32', [draws], Int32Array.from(each(row => (row % 2 ? 40 : 0)))),
      seed: put(device, 'u32', [draws, 2], Uint32Array.from(each(row => row).flatMap(row => [row, 1]))),
      position: put(device, 'i32', [draws], Int32Array.from(each(row => row))),
    })
    return { ids, logprobs }
  })
  drawn.run()
  await collect('draw', drawn.outputs)
  return all
}

/** Keys or values in every page. */
function cache(device: Device, seed: number): KvLayer['k'] {
  const shape = [pages.length, config.kvHeads, pageSize, config.headDim]
  const values = noise(
    shape.reduce((a, b) => a * b),
    seed,
  )
  const bits = new Uint32Array(values.buffer).map(word => word & 0xffff0000) // exact in bf16
  const array = device.activation === 'bf16' ? Uint16Array.from(bits, word => word >>> 16) : new Float32Array(bits.buffer)
  return put(device, device.activation as 'bf16', shape, array)
}

/** Numbers from -1 to 1, without a pattern; the same everywhere. */
function noise(count: number, seed: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: count }, (_, i) => {
    const word = Math.imul(i + 1, 0x9e3779b1) + seed
    return (Math.imul(word ^ (word >>> 15), 0x85ebca6b) >> 8) / 2 ** 23
  })
}

function put<D extends DType>(device: Device, dtype: D, shape: readonly number[], values: ArrayBufferView): DeviceTensor<D> {
  const tensor = device.tensor(dtype, shape)
  device.write(tensor, values)
  return tensor
}

async function read(device: Device, tensor: DeviceTensor): Promise<Float64Array> {
  const count = tensor.shape.reduce((a, b) => a * b)
  if (tensor.dtype === 'i32') return Float64Array.from(await device.read(tensor, new Int32Array(count)))
  if (tensor.dtype === 'f32') return Float64Array.from(await device.read(tensor, new Float32Array(count)))
  const halves = Uint32Array.from(await device.read(tensor, new Uint16Array(count)), bits => bits * 65536)
  return Float64Array.from(new Float32Array(halves.buffer))
}

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`

/** Of elements that differ. */
const share = (found: Float64Array, expected: Float64Array): number =>
  expected.filter((value, i) => found[i] !== value).length / expected.length

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
