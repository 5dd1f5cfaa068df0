// Between blocks and kernels: counters, what the last block sees of the others, chains of programmatic dependents.
import { expect } from '@jest/globals'
import { probes, sameWords } from './probe.ts'

const { imul } = Math

probes('count_up', check => {
  for (const begin of [0, -1000, 2 ** 31 - 5])
    check(`every value is seen once, from ${begin} on`, probe => {
      const threads = 40 * 64
      const input = Uint32Array.from({ length: threads }, () => probe.random.int(1, 1000))
      const found = probe.run(input, begin)
      // In the order of what they saw, each thread saw what those before it had added.
      const seen = Array.from(input, (by, i) => ({ was: (found[i]! - begin) >>> 0, by })).sort((a, b) => a.was - b.was)
      let sum = 0
      for (const { was, by } of seen) {
        expect(was).toBe(sum)
        sum += by
      }
      expect(found[threads]).toBe((begin + sum) >>> 0)
    })
})

probes('last_to_arrive', check => {
  for (const blocks of [1, 7, 300])
    check(`of ${blocks} blocks: it sees what all others wrote`, probe => {
      const input = probe.words(blocks * 64)
      const sums = new Uint32Array(64)
      input.forEach((value, i) => {
        sums[63 - (i % 64)]! += value
      })
      sameWords(probe.exact(input), [...sums, 0, ...input], 'sums, counter, parts')
    })
})

probes('chain', check => {
  for (const [n, kernels] of [
    [64, 1],
    [1000, 12],
    [20_000, 25],
  ] as const)
    check(`${kernels} kernels over ${n} words`, probe => {
      const input = probe.words(n)
      const halves = [new Uint32Array(n).fill(0xeeeeeeee), new Uint32Array(n).fill(0xeeeeeeee)]
      let from = input
      for (let k = 0; k < kernels; k++) {
        const to = halves[k % 2]!
        for (let i = 0; i < n; i++) to[i] = imul(from[(i * 5 + k) % n]!, 1664525) + k
        from = to
      }
      sameWords(probe.exact(input, kernels), [...halves[0]!, ...halves[1]!], 'what the last kernels wrote')
    })
})
