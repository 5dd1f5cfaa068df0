/** What every benchmark shares: arguments, the machine's ceilings, medians, the table and the JSON. */
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import type { Ceilings, DeviceName } from '../binding.d.ts'
import { builtinConfigs, isBuiltinConfig, type LlamaConfig } from '../lib/config.ts'
import { open } from '../lib/native.ts'
import { packageRoot } from '../lib/package.ts'

export interface BenchOptions {
  /** Name of the shape: one of builtinConfigs. */
  readonly shape: string
  readonly config: LlamaConfig
  readonly device: string | undefined
  readonly threads: number | undefined
  /** Prompt tokens. */
  readonly prompt: number
  /** Tokens to generate. */
  readonly decode: number
  /** Generations at once. */
  readonly batch: number
  readonly repeat: number
  /** Write the result here as JSON. */
  readonly out: string | undefined
  /** Print JSON instead of a table. */
  readonly json: boolean
}

/** Command line: --shape llama3-8b --prompt 64 --decode 8 --batch 1 --repeat 3 --device cpu --threads 2 --json --out FILE */
/** The options, or one line on stderr and exit code 2. From here on an error is one line, too, and exit code 1. */
export function benchOptions(defaults: { prompt: number; decode: number; repeat: number }): BenchOptions {
  process.once('uncaughtException', (error: Error) => {
    process.stderr.write(`${error.message}\n`)
    process.exit(1)
  })
  try {
    return parseOptions(defaults)
  } catch (error) {
    const usage = '--shape NAME --prompt N --decode N --batch N --repeat N --device NAME --threads N --json --out FILE'
    process.stderr.write(`${(error as Error).message}\nOptions: ${usage}\nShapes: ${Object.keys(builtinConfigs).join(', ')}\n`)
    process.exit(2)
  }
}

function parseOptions(defaults: { prompt: number; decode: number; repeat: number }): BenchOptions {
  const text = { type: 'string' } as const
  const { values } = parseArgs({
    options: {
      shape: text,
      device: text,
      threads: text,
      prompt: text,
      decode: text,
      batch: text,
      repeat: text,
      out: text,
      json: { type: 'boolean' },
    },
  })
  const shape = values.shape ?? 'llama3.2-1b'
  if (!isBuiltinConfig(shape)) throw new Error(`--shape is ${shape}, expected one of ${Object.keys(builtinConfigs).join(', ')}`)
  const whole = (name: 'threads' | 'prompt' | 'decode' | 'batch' | 'repeat', otherwise: number): number => {
    const value = values[name] === undefined ? otherwise : Number(values[name])
    if (!Number.isInteger(value) || value < 1) throw new Error(`--${name} is ${values[name]}, expected a whole number from 1 on`)
    return value
  }
  return {
    shape,
    config: builtinConfigs[shape],
    device: values.device,
    threads: values.threads === undefined ? undefined : whole('threads', 1),
    prompt: whole('prompt', defaults.prompt),
    decode: whole('decode', defaults.decode),
    batch: whole('batch', 1),
    repeat: whole('repeat', defaults.repeat),
    out: values.out,
    json: values.json ?? false,
  }
}

/** The middle value; of an even number, the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const half = sorted.length / 2
  return (sorted[Math.ceil(half) - 1]! + sorted[Math.floor(half)]!) / 2
}

/** The machine's ceilings, on a device of its own. */
export async function ceilings(options: Pick<BenchOptions, 'device' | 'threads'>): Promise<Ceilings> {
  const device = open((options.device ?? 'auto') as DeviceName | 'auto', { threads: options.threads })
  try {
    return await device.measure()
  } finally {
    device[Symbol.dispose]()
  }
}

/** Token ids that are the same everywhere: a permutation of the vocabulary, from the start. */
export function promptOf(tokens: number, vocab: number, sequence = 0): number[] {
  return Array.from({ length: tokens }, (_, i) => ((i + 1) * 7919 + sequence * 104729) % vocab)
}

/** One row of the table, one field of the JSON. */
export type Figures = Record<string, number | string | undefined>

/** Rows of figures as an aligned table, a column for each name; numbers with four digits. */
export function table(rows: readonly Figures[]): string {
  const names = [...new Set(rows.flatMap(row => Object.keys(row)))]
  const cell = (value: Figures[string]) =>
    typeof value === 'number' ? String(Number(value.toPrecision(4))) : String(value ?? '-')
  const lines = [names.map(name => name.replaceAll('_', ' ')), ...rows.map(row => names.map(name => cell(row[name])))]
  const widths = names.map((_, i) => Math.max(...lines.map(line => line[i]!.length)))
  return lines.map(line => `  ${line.map((text, i) => text.padEnd(widths[i]!)).join('  ')}`.trimEnd()).join('\n')
}

/** Prints figures as a table (or JSON) and writes them to --out together with where they were measured. */
export function report(name: string, options: BenchOptions, figures: Figures): void {
  const result = { benchmark: name, shape: options.shape, ...figures, ...environment() }
  const json = JSON.stringify(result, null, 2)
  if (options.out) writeFileSync(options.out, `${json}\n`)
  if (options.json) {
    console.log(json)
    return
  }
  const width = Math.max(...Object.keys(figures).map(key => key.length))
  console.log(`${name}, ${options.shape}`)
  for (const [key, value] of Object.entries(figures)) {
    const shown = typeof value === 'number' ? Number(value.toPrecision(4)).toLocaleString('en-US') : (value ?? '-')
    console.log(`  ${key.replaceAll('_', ' ').padEnd(width)}  ${shown}`)
  }
}

/** Where and when: the host, the commit, the date. */
export function environment(): Figures {
  const git = (...args: string[]): string | undefined => {
    try {
      return execFileSync('git', args, { cwd: packageRoot, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
    } catch {
      return undefined
    }
  }
  const dirty = git('status', '--porcelain') ? '+changes' : ''
  const commit = git('rev-parse', '--short=12', 'HEAD')
  return {
    cpu: cpus()[0]?.model,
    cores: cpus().length,
    node: process.version,
    commit: commit && commit + dirty,
    date: new Date().toISOString().slice(0, 10),
  }
}
