/** cria demo: shows that it works here, and how fast. What `npm start` runs. */
import type { Command } from 'commander'
import { inspect } from '../inspect.ts'
import type { Llama } from '../llama.ts'
import { version } from '../package.ts'
import { follow, type Timing } from './follow.ts'
import { load } from './load.ts'
import { type LoadFlags, seed, whole } from './options.ts'
import type { Stop } from './stop.ts'
import { duration, paint, Wrap } from './terminal.ts'

interface Flags extends Pick<LoadFlags, 'device'> {
  readonly prompt: string
  readonly seed: bigint
  readonly maxTokens: number
}

const { stdout } = process
const say = (line = '') => stdout.write(`${line}\n`)
const bold = (text: string) => paint(stdout, 'bold', text)
const dim = (text: string) => paint(stdout, 'dim', text)

export function addDemo(program: Command, stop: Stop): void {
  program
    .command('demo')
    .description('Run the small model that comes with cria: shows the device, some text and the rates.')
    .option('--prompt <text>', 'what it continues', 'Call me Ishmael. Some years ago')
    .option('--seed <n>', 'another seed, another story', seed, 14n)
    .option('--max-tokens <n>', 'most tokens to generate', whole(1), 128)
    .option('--device <name>', "'auto' (the first GPU, else the CPU), 'cpu' or 'cuda:N' (default: auto)")
    .action((flags: Flags) => demo(flags, stop))
}

async function demo(flags: Flags, stop: Stop): Promise<void> {
  say(`${bold(`cria ${version}`)}: Llama 3 from Node\n`)
  const { llama, milliseconds } = await load('demo', flags, stop)
  try {
    await sayDevices(llama.device, flags.device)
    say(`${bold('model')}   ${describe(llama)}`)
    say(dim('        a base model, trained on old sea novels: it writes such prose, of no great sense'))
    say()
    const timing = await tell(llama, flags, stop)
    say()
    say(`${bold(String(timing))}, loaded in ${duration(milliseconds)}`)
  } finally {
    await llama.close()
  }
  if (stop.signal.aborted) return
  say()
  say('How to go on:')
  say(`  npx cria chat <folder>        ${dim('talk to a Llama 3 Instruct: a folder with config.json,')}`)
  say(`                                ${dim('tokenizer.json and *.safetensors')}`)
  say(`  npx cria inspect llama3-8b    ${dim('what it weighs, computes and moves')}`)
  say(`  npx cria --help               ${dim('everything else')}`)
}

/** Every candidate, best first, and which was taken. */
async function sayDevices(taken: string, wanted: string | undefined): Promise<void> {
  const { devices } = await import('../native.ts')
  const reports = devices()
  const width = Math.max(...reports.map(({ device }) => device.length))
  const why = wanted && wanted !== 'auto' ? ' (--device)' : process.env.CRIA_DEVICE ? ' (CRIA_DEVICE)' : ''
  for (const [i, { device, available, reason }] of reports.entries()) {
    const answer = available ? paint(stdout, 'green', 'yes') : paint(stdout, 'yellow', 'no ')
    say(`${i === 0 ? bold('device') : '      '}  ${device.padEnd(width)}  ${answer}  ${reason}`)
  }
  say(`${bold('using')}   ${taken}${why}`)
}

function describe({ config }: Llama): string {
  const millions = (inspect(config).weights.parameters / 1e6).toFixed(1)
  const { layers, dim, vocab, context } = config
  return `demo: ${millions} million parameters, ${layers} layers, dim ${dim}, vocabulary ${vocab}, context ${context}`
}

/** The prompt and what the model makes of it. */
async function tell(llama: Llama, { prompt, seed, maxTokens }: Flags, stop: Stop): Promise<Timing> {
  const wrap = new Wrap(Math.min(stdout.columns || 80, 80))
  stdout.write(bold(wrap.push(prompt) + wrap.end()))
  const { timing } = await follow(llama.generate(prompt, { seed, maxTokens }), stop, text => stdout.write(wrap.push(text)))
  say(wrap.end())
  return timing
}
