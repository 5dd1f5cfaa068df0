/** How long recording a decode step and replaying it keep JavaScript busy: npm run bench:record -- --shape llama3-8b */
import type { DeviceName, KvLayer } from '../binding.d.ts'
import { open } from '../lib/native.ts'
import { Programs } from '../lib/programs.ts'
import { Sequence } from '../lib/sequence.ts'
import { randomModel } from '../lib/weights.ts'
import { benchOptions, median, report } from './harness.ts'
import { workOf } from './inputs.ts'

const options = benchOptions({ prompt: 1, decode: 1, repeat: 7 })
const { config } = options
const device = open((options.device ?? 'auto') as DeviceName | 'auto', { threads: options.threads })
const model = randomModel(device, config)
const cache = () => device.tensor(device.activation, [1, config.kvHeads, 16, config.headDim]) as KvLayer['k']
const kv = Array.from({ length: config.layers }, () => ({ k: cache(), v: cache() }))

const greedy = { temperature: 0, topP: 1, topK: 0, minP: 0, seed: [0, 0] as const }
const sequence = new Sequence([0], 1, greedy)
sequence.pages = [0]
const times = { record: [] as number[], write: [] as number[], run: [] as number[] }
let commands = 0
for (let i = 0; i < options.repeat; i++) {
  const begin = performance.now()
  const { buffers, program } = new Programs(device, model, kv, { maxSequences: 1, maxPages: 1, maxRows: 1 }).generation({
    tokens: 1,
  })
  const recorded = performance.now()
  buffers.writeBatch([workOf(sequence)], 16)
  const written = performance.now()
  program.run()
  times.run.push(performance.now() - written)
  times.write.push(written - recorded)
  times.record.push(recorded - begin)
  commands = program.cost.length
}
report('record', options, {
  device: device.description,
  commands,
  record_ms: median(times.record),
  record_first_ms: times.record[0],
  write_inputs_ms: median(times.write),
  run_ms: median(times.run),
})
device[Symbol.dispose]()
