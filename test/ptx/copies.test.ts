// cp.async with zero fill and groups; bulk copies that complete on mbarriers, through two places with full and empty ones.
import { type Probe, probes, sameWords, unwritten, type Words } from './probe.ts'

const image = 1024 // words
const blocks = 8

/** [block][group][thread]: whether a copy is valid; those that are not name an address `nowhere` bytes away. */
function asynchronous(probe: Probe, valid: () => boolean, nowhere: number): void {
  const { random } = probe
  const input = probe.words(blocks * (1024 + image))
  const want = new Uint32Array(blocks * 2048)
  for (let block = 0; block < blocks; block++) {
    const words = input.subarray(block * (1024 + image), (block + 1) * (1024 + image))
    for (let copy = 0; copy < 256; copy++) {
      const is = valid()
      const offset = 16 * random.int(0, 256) + (is ? 0 : nowhere)
      words.set([offset % 2 ** 32, Math.floor(offset / 2 ** 32), is ? 1 : 0, 0], copy * 4)
      const from = words.subarray(1024 + offset / 4, 1024 + offset / 4 + 4)
      for (const half of [0, 1024]) want.set(is ? from : [0, 0, 0, 0], block * 2048 + half + copy * 4)
    }
  }
  sameWords(probe.exact(input), want, 'what was copied')
}

probes('copy_async', check => {
  check('all valid', probe => asynchronous(probe, () => true, 0))
  check('some not valid: zeros', probe => asynchronous(probe, () => probe.random.int(0, 3) > 0, 0))
  check('what is not valid is not read, wherever it may be', probe =>
    asynchronous(probe, () => probe.random.int(0, 2) === 0, 2 ** 44),
  )
})

probes('bulk_copy', check => {
  const steps = (probe: Probe, bytes: () => number, first: (bytes: number) => number, afterwards: () => boolean) => {
    const size = 32 + image
    const input = probe.words(blocks * size)
    const want = new Uint32Array(blocks * 2048).fill(unwritten)
    for (let block = 0; block < blocks; block++) {
      const words: Words = input.subarray(block * size, (block + 1) * size)
      for (let step = 0; step < 8; step++) {
        const count = bytes()
        const offset = 16 * probe.random.int(0, (4096 - count) / 16 + 1)
        words.set([offset, count, first(count), afterwards() ? 1 : 0], step * 4)
        want.set(words.subarray(32 + offset / 4, 32 + (offset + count) / 4), block * 2048 + step * 256)
      }
    }
    sameWords(probe.exact(input), want, 'what was copied')
  }
  check('of every size', probe => steps(probe, () => 16 * probe.random.int(1, 65), bytes => bytes, () => false)) // biome-ignore format: one line
  check('in two pieces, announced before or afterwards', probe =>
    steps(
      probe,
      () => 16 * probe.random.int(2, 65),
      bytes => 16 * probe.random.int(1, bytes / 16),
      () => probe.random.int(0, 2) === 0,
    ),
  )
})
