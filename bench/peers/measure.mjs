// What both engines' measurements share: options, the clock, memory, and the one line that they print.
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { promptTokens, shapeOf } from './shape.mjs'

export const seconds = async work => {
  const start = performance.now()
  const result = await work()
  return [(performance.now() - start) / 1000, result]
}

export const median = values => {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/** Highest resident memory so far (it counts pages of mapped files), and what of it now is the process's own. */
function memory() {
  const status = readFileSync('/proc/self/status', 'utf8')
  const bytes = name => 1024 * Number(status.match(new RegExp(`${name}:\\s+(\\d+)`))[1])
  return { peak_rss_bytes: Math.max(bytes('VmHWM'), 1024 * process.resourceUsage().maxRSS), anon_rss_bytes: bytes('RssAnon') }
}

async function options() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      threads: { type: 'string', default: '2' },
      prefill: { type: 'string', default: '256' },
      decode: { type: 'string', default: '32' },
      repeat: { type: 'string', default: '3' },
      flash: { type: 'string', default: 'auto' }, // llama.cpp's flash attention: auto, on, off
    },
  })
  const [folder] = positionals
  if (!folder) throw new Error('usage: node ENGINE.mjs FOLDER [--threads 2] [--prefill 256] [--decode 32] [--repeat 3]')
  const { flash, ...numbers } = values
  const shape = shapeOf(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')))
  return { folder, shape, flash, ...Object.fromEntries(Object.entries(numbers).map(([name, text]) => [name, Number(text)])) }
}

/**
 * Measures an engine and prints one line of JSON.
 * `load(options)` brings the engine, from its import on, to where it can take a prompt, and returns
 *   `generate(prompt, count)`: an async iterator of greedy tokens that forgets the earlier calls and does not stop at an EOS;
 *   `about()`: what else to say, asked after the measurements; `close()`.
 * The first token is the prefill's. The decode is the `decode` tokens after it.
 */
export async function measure(engine, load) {
  const { threads, prefill, decode, repeat, ...rest } = await options()
  const prompt = promptTokens(rest.shape, prefill)
  const contextSize = Math.max(512, Math.ceil((prefill + decode + 1) / 256) * 256)
  const [loadSeconds, loaded] = await seconds(() => load({ threads, prefill, contextSize, ...rest }))

  const runs = []
  for (let i = 0; i < repeat; i++) {
    const tokens = []
    const iterator = loaded.generate(prompt, decode + 1)[Symbol.asyncIterator]()
    const next = async () => tokens.push((await iterator.next()).value)
    const [prefillSeconds] = await seconds(next)
    const [decodeSeconds] = await seconds(async () => {
      while (tokens.length < decode + 1) await next()
    })
    await iterator.return?.()
    runs.push({ prefillSeconds, decodeSeconds, tokens })
  }
  const prefills = runs.map(run => run.prefillSeconds)
  const decodes = runs.map(run => run.decodeSeconds)
  const result = {
    engine,
    shape: rest.shape.name,
    threads,
    load_s: loadSeconds,
    first_token_s: loadSeconds + prefills[0],
    prefill_tokens: prefill,
    prefill_s: median(prefills),
    prefill_tok_s: prefill / median(prefills),
    prefill_runs_s: prefills,
    decode_tokens: decode,
    decode_s: median(decodes),
    decode_tok_s: decode / median(decodes),
    decode_runs_s: decodes,
    first_tokens: runs[0].tokens,
    repeatable: runs.every(run => run.tokens.join() === runs[0].tokens.join()),
    ...memory(),
  }
  Object.assign(result, await loaded.about(prompt, result.first_tokens))
  await loaded.close()
  console.log(JSON.stringify(result))
}
