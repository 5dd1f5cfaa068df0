// npm run bench -- [SHAPE] [--threads N] [--out FILE]: cria and llama.cpp in turns, each time in a fresh process.
import { execFile } from 'node:child_process'
import { access, mkdir, writeFile } from 'node:fs/promises'
import { availableParallelism, cpus } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { makeModel } from './make-model.mjs'
import { median } from './measure.mjs'
import { shapes, weightBytes } from './shape.mjs'

const here = import.meta.dirname
const machineBench = join(here, '../../dist/bench/machine.js')
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: 'string', default: String(availableParallelism()) },
    prefill: { type: 'string', default: '256' },
    decode: { type: 'string', default: '32' },
    repeat: { type: 'string', default: '3' }, // in one process
    rounds: { type: 'string', default: '3' }, // processes of each engine
    models: { type: 'string', default: process.env.CRIA_PEER_MODELS ?? join(here, 'models') },
    out: { type: 'string' },
  },
})
const shapeName = positionals[0] ?? '1b'
const folder = resolve(values.models, shapeName)
const numbers = ['threads', 'prefill', 'decode', 'repeat'].flatMap(name => [`--${name}`, values[name]])
const execute = promisify(execFile)

/** What a script prints, as JSON. */
async function output(script, args) {
  const { stdout } = await execute(process.execPath, [script, ...args], { maxBuffer: 1 << 26 })
  return JSON.parse(stdout)
}

/** The median process: every number is the median over the rounds. */
function summary(runs) {
  if (runs.length === 0) return undefined
  const first = runs[0]
  const numeric = Object.keys(first).filter(key => typeof first[key] === 'number')
  return { ...first, ...Object.fromEntries(numeric.map(key => [key, median(runs.map(run => run[key]))])) }
}

/** Bytes that decoding moves a second: all weights for each token, and the keys and values (16 bits) of those before it. */
function decodeBytes({ layers, kvHeads, headDim, ...shape }, { prefill_tokens, decode_tokens, decode_tok_s }) {
  const cache = 4 * layers * kvHeads * headDim * (prefill_tokens + decode_tokens / 2)
  return (weightBytes({ layers, kvHeads, headDim, ...shape }) + cache) * decode_tok_s
}

/** The engines round differently: where the best two logits are this close (their deviation is about 1), either may win. */
const nearTie = 0.05

function agreement(ours, theirs) {
  if (!ours || !theirs) return undefined
  const total = theirs.first_tokens.length
  const at = theirs.first_tokens.findIndex((token, i) => token !== ours.first_tokens[i])
  if (at < 0) return { agree: total, of: total, text: `all ${total} greedy tokens agree` }
  const margin = theirs.margins[at]
  const tie = margin < nearTie
  const text = `${at} of ${total} greedy tokens agree; the next is ${tie ? 'a near tie' : 'NO near tie'} (logits ${margin.toFixed(3)} apart)`
  return { agree: at, of: total, margin, near_tie: tie, text }
}

function table(ours, theirs) {
  const rows = [
    ['load', 's', r => r.load_s, 2, false],
    ['load + first token', 's', r => r.first_token_s, 2, false],
    ['prefill', 'tokens/s', r => r.prefill_tok_s, 1, true],
    ['decode', 'tokens/s', r => r.decode_tok_s, 2, true],
    ['decode moves', 'GB/s', r => r.decode_bytes_s / 1e9, 2, true],
    ['peak memory', 'GB', r => r.peak_rss_bytes / 1e9, 2, false],
    ['of it not mapped', 'GB', r => r.anon_rss_bytes / 1e9, 2, false],
  ]
  if (haveMachine) rows.splice(5, 0, ['of the bandwidth then', '%', r => 100 * r.read_share, 0, true])
  const line = cells => cells.map((cell, i) => (i ? cell.padStart(12) : cell.padEnd(28))).join('')
  const body = rows.map(([name, unit, get, digits, moreIsBetter]) => {
    const [a, b] = [ours, theirs].map(result => result && get(result))
    const cell = value => (value === undefined ? '-' : value.toFixed(digits))
    const ratio = a !== undefined && b !== undefined && (moreIsBetter ? a / b : b / a)
    return line([`${name}, ${unit}`, cell(a), cell(b), ratio ? `${ratio.toFixed(2)}x` : '-'])
  })
  return [line(['', 'cria', 'llama.cpp', 'better by']), ...body].join('\n')
}

await makeModel(shapeName, folder)
const shape = shapes[shapeName]

const haveMachine = await access(machineBench).then(
  () => true,
  () => false,
)
/** What all threads together can read now, in bytes a second. It varies by half on a shared machine, so every run has its own. */
async function readBandwidth() {
  if (!haveMachine) return undefined
  const { read_gb_per_s } = await output(machineBench, ['--json', '--device', 'cpu', '--threads', values.threads])
  return read_gb_per_s * 1e9
}

const runs = { cria: [], 'llama-cpp': [] }
let before = await readBandwidth()
for (let round = 0; round < Number(values.rounds); round++) {
  for (const engine of Object.keys(runs)) {
    try {
      const result = await output(join(here, `${engine}.mjs`), [folder, ...numbers])
      const after = await readBandwidth()
      const decode_bytes_s = decodeBytes(shape, result)
      const bandwidth = after && { read_bytes_s: (before + after) / 2, read_share: decode_bytes_s / ((before + after) / 2) }
      runs[engine].push({ ...result, decode_bytes_s, ...bandwidth })
      before = after
    } catch (error) {
      console.error(`${engine} failed: ${error.stderr || error.message}`)
      process.exitCode = 1
    }
  }
}

const [ours, theirs] = [summary(runs.cria), summary(runs['llama-cpp'])]
const tokens = agreement(ours, theirs)
console.log(`${shapeName}, ${values.threads} threads, prompt of ${values.prefill}, ${values.decode} decoded, ${cpus()[0].model}`)
if (theirs) console.log(`${theirs.version}, ${theirs.backend}`)
if (ours?.read_bytes_s)
  console.log(`read bandwidth ${(ours.read_bytes_s / 1e9).toFixed(1)} GB/s, measured before and after each run`)
console.log(`\n${table(ours, theirs)}\n\n${tokens?.text ?? ''}`)

if (values.out) {
  await mkdir(dirname(resolve(values.out)), { recursive: true })
  const report = {
    date: new Date().toISOString(),
    cpu: cpus()[0].model,
    shape: shapeName,
    cria: ours,
    llama_cpp: theirs,
    tokens,
    runs,
  }
  await writeFile(values.out, `${JSON.stringify(report, null, 2)}\n`)
}
