// Shuffles, votes and reductions by the lanes of a mask, while the other lanes of the warp do the same among themselves.
import { probes } from './probe.ts'

probes('warp', check => {
  const masks: Record<string, (random: () => number) => number> = {
    'the whole warp': () => 0xffffffff,
    'any lanes, and the others': random => random(),
    'halves, quarters, pairs': random => [0x0000ffff, 0xff00ff00, 0xf0f0f0f0, 0xcccccccc, 0x80000000][random() % 5]!,
  }
  for (const [title, choose] of Object.entries(masks)) {
    check(title, probe => {
      const { random } = probe
      const blocks = 32
      const input = probe.words(blocks * 129)
      for (let block = 0; block < blocks; block++) {
        const words = input.subarray(block * 129, (block + 1) * 129)
        words[0] = choose(() => random.u32())
        for (let lane = 0; lane < 32; lane++) {
          const mine = members(words[0]!, lane)
          words[1 + 4 * lane + 1] = random.pick(mine) + 32 * random.int(0, 3) // a lane's number counts modulo 32
          words[1 + 4 * lane + 2] = (random.pick(mine) ^ lane) + 32 * random.int(0, 3)
          words[1 + 4 * lane + 3] = random.int(0, 2)
        }
      }
      const found = probe.exact(input)
      for (let i = 0; i < blocks * 32; i++) {
        const words = input.subarray((i >> 5) * 129, ((i >> 5) + 1) * 129)
        const lane = i & 31
        const value = (l: number) => words[1 + 4 * l]!
        const mine = members(words[0]!, lane)
        const from = words[1 + 4 * lane + 1]! % 32
        const other = (lane ^ words[1 + 4 * lane + 2]!) & 31
        const votes = mine.filter(l => words[1 + 4 * l + 3] !== 0).reduce((bits, l) => bits + 2 ** l, 0)
        const expected = [value(from), value(from), value(other), votes, Math.max(...mine.map(value))]
        const got = [...found.subarray(i * 5, i * 5 + 5)]
        // A float's NaN travels with its bits.
        if (String(got) !== String(expected))
          throw new Error(`block ${i >> 5} lane ${lane}: shuffle, of floats, xor, ballot, max are ${got}, expected ${expected}`)
      }
    })
  }
})

/** The lanes that a lane works with. */
function members(mask: number, lane: number): number[] {
  const bit = (l: number) => (mask >>> l) & 1
  return Array.from({ length: 32 }, (_, l) => l).filter(l => bit(l) === bit(lane))
}
