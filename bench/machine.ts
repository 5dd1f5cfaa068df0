/** What this machine can do at best: npm run bench:machine */
import { benchOptions, ceilings, report } from './harness.ts'

const options = benchOptions({ prompt: 1, decode: 1, repeat: 3 })
const best = { read: 0, copy: 0, flops: 0 }
for (let i = 0; i < options.repeat; i++) {
  const now = await ceilings(options)
  best.read = Math.max(best.read, now.read)
  best.copy = Math.max(best.copy, now.copy)
  best.flops = Math.max(best.flops, now.flops)
}
report('machine', options, {
  read_gb_per_s: best.read / 1e9,
  copy_gb_per_s: best.copy / 1e9,
  gflop_per_s: best.flops / 1e9,
})
