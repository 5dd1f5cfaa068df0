// Runs nvcc and keeps what it says beside the object file: registers and spills of every kernel, also of those that were
// compiled some builds ago. test/cuda_build.test.ts reads it.
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'

const [command, ...args] = process.argv.slice(2)
const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 28 })
const object = args[args.indexOf('-o') + 1]
if (status === 0 && args.includes('-c')) writeFileSync(`${object}.log`, stdout + stderr)
process.stdout.write(stdout)
process.stderr.write(stderr)
process.exit(status ?? 1)
