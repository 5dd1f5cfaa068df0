/** Decoding with random weights of a real shape, as a share of what memory allows: npm run bench:decode -- --shape llama3-8b */
import { Llama } from '../lib/llama.ts'
import { benchOptions, ceilings, median, report } from './harness.ts'
import { decodeBytes, decode as decodeTimes } from './steps.ts'

const options = benchOptions({ prompt: 64, decode: 8, repeat: 1 })
const { config, prompt, decode, batch } = options
const context = Math.min(config.context, prompt + decode + 1)

const limits = await ceilings(options)
const started = performance.now()
const llama = await Llama.random(config, {
  device: options.device,
  threads: options.threads,
  contextLength: context,
  maxSequences: batch,
  kvCacheTokens: batch * (context + 16),
})
await llama.generate([0], { maxTokens: 1, temperature: 0, ignoreEos: true }) // weights are made in the order of the stream
const made = performance.now()

const first: number[] = []
const perToken: number[] = []
for (let i = 0; i < options.repeat; i++) {
  const times = await decodeTimes(llama, batch, prompt, decode)
  first.push(times.first)
  perToken.push(...times.perToken)
}
const steady = await ceilings(options)
const read = median([limits.read, steady.read])

const step = median(perToken)
const bytes = decodeBytes(config, batch, prompt + decode / 2)
report('decode', options, {
  device: llama.device,
  batch,
  prompt_tokens: prompt,
  decode_tokens: decode,
  make_weights_s: (made - started) / 1000,
  first_token_s: median(first),
  step_ms: step * 1000,
  tokens_per_s: batch / step,
  gb_per_step: bytes / 1e9,
  gb_per_s: bytes / step / 1e9,
  read_gb_per_s: read / 1e9,
  share_of_read: bytes / step / read,
  peak_rss_gb: (process.resourceUsage().maxRSS * 1024) / 1e9,
})
await llama.close()
