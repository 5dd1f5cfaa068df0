// The order in which jest starts files: what takes minutes first, then as jest would, so that no core waits at the end.
import Sequencer from '@jest/test-sequencer'

const long = [
  'sanitized',
  'package',
  'wounds',
  'plants',
  'plants_native',
  'goldens',
  'needle',
  'machine',
  'ops/sample',
  'ops/attention',
  'ops/linear',
]
const rank = ({ path }) => long.findIndex(name => path.endsWith(`/${name}.test.ts`))
const isLong = test => rank(test) >= 0

export default class extends Sequencer {
  async sort(tests) {
    const sorted = await super.sort(tests)
    const first = sorted.filter(isLong).sort((a, b) => rank(a) - rank(b))
    return [...first, ...sorted.filter(test => !isLong(test))]
  }
}
