// Every barrier, wait, guard and mask of every kernel, taken away one at a time on the emulated device: some test of the
// op must fail. A call that can go without one being missed is either superfluous or not tested.
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { runJest } from './run_jest.ts'

const ops = join(packageRoot, 'native/ops')
const tiles = join(packageRoot, 'native/machine/tile')
const removable =
  /\b(sync_(block|warps|warp)|guard|grid_wait|copy_async_(wait<.*>|16)|mbarrier_(wait|arrive)|wgmma_(wait<.*>|fence)|publish_shared)\(/

interface Wound {
  /** As in CRIA_SIMT: file:line. */
  readonly site: string
  readonly code: string
  /** Tests of the ops that have it. */
  readonly stem: string
}

/** The tests that show a site of a file that is not <op>.cu. */
const users: Record<string, string> = {
  'reduce.h': 'sample',
  'arrive.h': 'linear',
  'linear.cu': '(linear|fuse)',
  'linear_sm90.cu': '(linear|fuse)',
  'linear_epilogue.cuh': '(linear|fuse)',
  'attention.cu': '(attention|attention_edges)',
  'attention_sm90.cu': '(attention|attention_edges)',
  'attention_ring.cuh': '(attention|attention_edges)',
  'attention_units.cuh': '(attention|attention_edges)',
  'sample_numbers.cuh': 'sample',
  'logit_slices.cuh': '(sample|logprobs)',
}

function wounds(folder: string, name: string): Wound[] {
  const lines = readFileSync(join(folder, name), 'utf8').split('\n')
  return lines.flatMap((line, i) => {
    const code = line.replace(/\/\/.*/, '').trim()
    if (!removable.test(code)) return []
    return [{ site: `${name}:${i + 1}`, code, stem: users[name] ?? basename(name).replace(/\.\w+$/, '') }]
  })
}
const all = [
  ...readdirSync(ops)
    .filter(name => /\.cuh?$/.test(name) && name !== 'ceilings.cu') // gives rates: nothing of it can be found missing
    .flatMap(name => wounds(ops, name)),
  ...readdirSync(tiles).flatMap(name => wounds(tiles, name)),
]

/** Runs the emulated cases of an op with a wound, until the first failure; its exit code and what it printed. */
const run = (stem: string, settings: string) =>
  runJest([`test/ops/${stem}.test.ts`, '-t', '^(?!.* refused: ).* on simt '], {
    CRIA_SIMT: settings,
    ...(settings ? { CRIA_BAIL: '1' } : {}),
  })

describe('without', () => {
  const timeout = 300_000 // five of them share the cores with other files
  const stems = [...new Set(all.map(({ stem }) => stem))]
  test.concurrent.each(stems)(
    'anything missing, the tests of %s pass',
    async stem => {
      const { code, printed } = await run(stem, '')
      expect(printed).toMatch(/Tests: .*\d+ passed/)
      expect({ code, printed: code === 0 ? '' : printed }).toEqual({ code: 0, printed: '' })
      expect(all.length).toBeGreaterThan(20)
    },
    timeout,
  )

  test.concurrent.each(all)(
    '$site $code, a test fails',
    async ({ site, stem }) => {
      const { code } = await run(stem, `wound=${site}`) // a write to anywhere may end the whole process
      expect({ site, found: code !== 0 }).toEqual({ site, found: true })
    },
    timeout,
  )
})
