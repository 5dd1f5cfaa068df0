/** What this machine can do: npm run bench:machine */
import type { Ceilings } from '../binding.d.ts'
import { benchOptions, ceilings, median, report } from './harness.ts'

const options = benchOptions({ prompt: 1, decode: 1, repeat: 3 })
const runs: Ceilings[] = []
for (let i = 0; i < options.repeat; i++) runs.push(await ceilings(options))
report('machine', options, {
  read_gb_per_s: median(runs.map(run => run.read)) / 1e9,
  copy_gb_per_s: median(runs.map(run => run.copy)) / 1e9,
  gflop_per_s: median(runs.map(run => run.flops)) / 1e9,
})
