// Says why there is no GPU to test, and fails, where a test run would skip everything and pass.
import { devices } from '../dist/lib/native.js'

const gpus = devices().filter(({ device }) => device.startsWith('cuda:'))
if (!gpus.some(({ available }) => available)) {
  process.stderr.write(`There is no GPU to test: ${gpus.map(({ reason }) => reason).join('; ')}. npx cria doctor says more.\n`)
  process.exit(1)
}
