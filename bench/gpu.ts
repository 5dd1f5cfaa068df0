/**
 * Everything that a GPU can be asked, in one run of minutes: npm run bench:gpu
 * --device cuda:0 --shape llama3-8b --out DIR (default: $OUT, else bench/results). The JSON has every figure and every
 * denominator. --device simt --shape tiny tries the program itself, without a GPU.
 */
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { builtinConfigs, isBuiltinConfig } from '../lib/config.ts'
import { type DeviceName, devices, gpuSoftware } from '../lib/native.ts'
import { packageRoot } from '../lib/package.ts'
import { kernelFigures, limitsOf, Models, marksOf, type Plan } from './gpu_run.ts'
import { ceilings, environment, type Figures, table } from './harness.ts'
import { ops, timeOp } from './kernels.ts'

/** After this many seconds nothing new is begun. */
const budget = 330

const tiny = { layers: 2, heads: 4, kvHeads: 2, headDim: 64, dim: 256, hidden: 512, vocab: 1024, context: 64 }

function planFor(shape: string): Plan {
  if (shape === 'tiny') {
    const config = { ...builtinConfigs['llama3-8b'], ...tiny }
    const sizes = { rotate: 2 ** 16, commands: 2 }
    return { config, rows: [1, 4], sizes, decode: [{ batch: 1, context: 8 }, { batch: 4, context: 16 }], prefill: [24], tokens: 3, repeat: 1 } // biome-ignore format: one line
  }
  if (!isBuiltinConfig(shape)) fail(`--shape is ${shape}, expected tiny or one of ${Object.keys(builtinConfigs).join(', ')}`)
  return {
    config: builtinConfigs[shape],
    rows: [1, 8, 64, 2048],
    sizes: { rotate: 2 ** 29, commands: 32 },
    decode: [1, 8, 64].flatMap(batch => [64, 1024].map(context => ({ batch, context }))),
    prefill: [512, 2048, 8192],
    tokens: 48,
    repeat: 3,
  }
}

function fail(sentence: string): never {
  process.stderr.write(`${sentence}\n`)
  process.exit(1)
}

const text = { type: 'string' } as const
const { values } = parseArgs({ options: { device: text, shape: text, out: text } })
const shape = values.shape ?? 'llama3-8b'
const plan = planFor(shape)
const gpus = devices().filter(({ device }) => device.startsWith('cuda:'))
const device = (values.device ?? gpus.find(({ available }) => available)?.device) as DeviceName | undefined
if (!device) fail(`There is no GPU to measure: ${gpus.map(({ reason }) => reason).join('; ')}. npx cria doctor says more.`)
const report = gpus.find(gpu => gpu.device === device)
if (device !== 'simt' && !report?.available) fail(`${device} cannot be measured: ${report?.reason ?? 'there is no such GPU'}.`)

findLibrary()
const started = performance.now()
const elapsed = () => (performance.now() - started) / 1000
const problems: string[] = []

/** Does one part, and says so; one that fails, or for which there is no time, is a sentence in the result. */
async function part(what: string, work: () => Promise<void>): Promise<void> {
  if (elapsed() > budget) {
    problems.push(`${what}: left out, ${budget} seconds have passed`)
    return
  }
  process.stderr.write(`${elapsed().toFixed(0).padStart(4)} s  ${what}\n`)
  try {
    await work()
  } catch (error) {
    problems.push(`${what}: ${(error as Error).message}`)
    process.stderr.write(`        failed: ${(error as Error).message}\n`)
  }
}

process.stderr.write(`${elapsed().toFixed(0).padStart(4)} s  ceilings of ${device}\n`)
const limits = await limitsOf(device, plan).catch((error: Error) => fail(`${device}: ${error.message}`))
const kernels: Figures[] = []
for (const op of Object.keys(ops) as (keyof typeof ops)[])
  await part(op, async () => {
    for (const time of await timeOp(device, op, plan.config, plan.rows, plan.sizes)) kernels.push(kernelFigures(time, limits))
  })

const models = new Models(device, plan, limits)
const decode: Figures[] = []
const prefill: Figures[] = []
let weightsSeconds: number | undefined
await part(`${shape} with random weights`, async () => {
  weightsSeconds = await models.engine(async llama => {
    for (const { batch, context } of plan.decode)
      await part(`decode, batch ${batch}, context ${context}`, async () => {
        decode.push(await models.decode(llama, batch, context))
      })
    for (const length of plan.prefill)
      await part(`prefill of ${length} tokens`, async () => {
        prefill.push(await models.prefill(llama, length))
      })
  })
})
const onDevice: Figures[] = []
await part('decode on the device alone', () => models.onDevice(figures => onDevice.push(figures) > 0 && elapsed() < budget))
const after = await ceilings({ device, threads: undefined }).catch(() => undefined)

const marks = shape === 'llama3-8b' ? marksOf(decode, prefill).map(mark => ({ ...mark })) : []
const title = `${report?.reason ?? device}, ${shape}`
const capability = report?.reason.match(/compute capability (\d+\.\d+)/)?.[1]
const result = {
  benchmark: 'gpu',
  shape,
  device,
  description: report?.reason ?? 'the kernels on emulated threads',
  compute_capability: capability,
  memory: report?.memory,
  ...gpuSoftware(),
  ceilings: {
    read_gb_per_s: limits.read / 1e9,
    copy_gb_per_s: limits.copy / 1e9,
    instructions_tflop_per_s: limits.flops / 1e12,
    matmul_tflop_per_s: limits.matmul / 1e12,
    matmul_from: limits.matmulFrom,
    library: limits.library,
  },
  ceilings_afterwards: after && {
    read_gb_per_s: after.read / 1e9,
    copy_gb_per_s: after.copy / 1e9,
    instructions_tflop_per_s: after.flops / 1e12,
  },
  kernels,
  make_weights_s: weightsSeconds,
  decode,
  decode_on_device: onDevice,
  prefill,
  marks,
  problems,
  seconds: elapsed(),
  ...environment(),
}

const folder = values.out ?? process.env.OUT ?? join(packageRoot, 'bench', 'results')
mkdirSync(folder, { recursive: true })
const name = (report?.reason.split(',')[0] ?? device).toLowerCase().replace(/[^a-z0-9]+/g, '-')
const file = join(folder, `gpu-${name}-${shape}.json`)
writeFileSync(file, `${JSON.stringify(result, null, 2)}\n`)

const { library, ...rates } = result.ceilings
const sections = { kernels, decode, decode_on_device: onDevice, prefill, marks, library }
console.log([title, '', table([rates])].join('\n'))
for (const [section, rows] of Object.entries(sections))
  if (rows.length > 0) console.log(`\n${section.replaceAll('_', ' ')}\n${table(rows)}`)
if (problems.length > 0) console.log(`\nproblems\n${problems.map(problem => `  ${problem}`).join('\n')}`)
process.stderr.write(`${elapsed().toFixed(0).padStart(4)} s  done: ${file}\n`)
process.exitCode = problems.length > 0 ? 1 : 0

/** cuBLASLt from a toolkit is found by its name; Python's packages have it where the linker does not look. */
function findLibrary(): void {
  const list = (folder: string) => {
    try {
      return readdirSync(folder).map(entry => join(folder, entry))
    } catch {
      return []
    }
  }
  const pythons = ['/usr/local/lib', '/usr/lib', '/opt/conda/lib'].flatMap(list).filter(path => /\/python3(\.\d+)?$/.test(path))
  const packages = pythons.flatMap(path => [join(path, 'dist-packages'), join(path, 'site-packages')])
  const vendors = packages.flatMap(path => ['cu13', 'cublas'].map(name => join(path, 'nvidia', name, 'lib')))
  process.env.CRIA_CUBLASLT ??= vendors.flatMap(list).find(path => /libcublasLt\.so\.1[23]$/.test(path)) ?? ''
}
