/** Prefill with random weights of a real shape, as a share of what arithmetic allows: npm run bench:prefill -- --prompt 256 */
import { inspect } from '../lib/inspect.ts'
import { Llama } from '../lib/llama.ts'
import { benchOptions, ceilings, median, report } from './harness.ts'
import { prefill } from './steps.ts'

const options = benchOptions({ prompt: 256, decode: 1, repeat: 3 })
const { config, prompt, batch } = options
const context = Math.min(config.context, prompt + 2)

const limits = await ceilings(options)
const started = performance.now()
const llama = await Llama.random(config, {
  device: options.device,
  threads: options.threads,
  contextLength: context,
  maxSequences: batch,
  maxBatchTokens: Math.max(batch * prompt, context),
  kvCacheTokens: batch * (context + 16),
})
await llama.generate([0], { maxTokens: 1, temperature: 0, ignoreEos: true })
const made = performance.now()

const seconds = await prefill(llama, batch, prompt, options.repeat)
const steady = await ceilings(options)
const peak = median([limits.flops, steady.flops])

const time = median(seconds)
const flops = batch * inspect(config, { tokens: prompt, logits: 'last' }).totals.flops
report('prefill', options, {
  device: llama.device,
  batch,
  prompt_tokens: prompt,
  make_weights_s: (made - started) / 1000,
  prefill_s: time,
  tokens_per_s: (batch * prompt) / time,
  gflop_per_s: flops / time / 1e9,
  peak_gflop_per_s: peak / 1e9,
  share_of_peak: flops / time / peak,
  peak_rss_gb: (process.resourceUsage().maxRSS * 1024) / 1e9,
})
await llama.close()
