// wgmma m64nNk16: matrices in swizzled shared memory, one of them written by the threads before fence.proxy.async, the other
// by the asynchronous proxy; then with the first matrix in registers, and the second one as it is or transposed.
import { fromBf16 } from '../ops/numbers.ts'
import {
  checkSum,
  dot,
  floatOf,
  fragment,
  gatherBf16,
  type Kind,
  kinds,
  packedValues,
  swizzledByte,
  wordOf,
} from './fragments.ts'
import { probes, type Words } from './probe.ts'

/** Element (row, k) of an image of rows of 64 in swizzled memory that begins at word `at`. */
function element(image: Words, at: number, row: number, k: number): number {
  const byte = swizzledByte(row, k)
  return fromBf16((image[at + (byte >> 2)]! >>> (byte & 2 ? 16 : 0)) & 0xffff)
}

for (const n of [8, 16, 32, 64, 128, 192, 256]) {
  probes(`wgmma_${n}`, check => {
    for (const kind of Object.keys(kinds) as Kind[]) {
      check(kind, probe => {
        const { random } = probe
        const blocks = n >= 128 ? 1 : 2
        const [b, d, size] = [4 + 64 * 32, 4 + (64 + n) * 32, 4 + 64 * 32 + n * 96]
        const input = packedValues(kind, random, blocks * size)
        const steps = Array.from({ length: blocks }, () => [random.int(0, 4), random.int(0, 4)])
        for (let block = 0; block < blocks; block++) {
          input.set([...steps[block]!, 0, 0], block * size)
          for (let i = d; i < size; i++) input[block * size + i] = wordOf(kinds[kind].value(random))
        }
        const found = kinds[kind].exact ? probe.exact(input) : probe.run(input)
        for (let block = 0; block < blocks; block++) {
          const words = input.subarray(block * size, (block + 1) * size)
          const ks = steps[block]!.flatMap(step => Array.from({ length: 16 }, (_, i) => 16 * step + i))
          for (let thread = 0; thread < 128; thread++)
            for (let i = 0; i < n / 2; i++) {
              const { row, column } = fragment.group(thread, i)
              const c = floatOf(words[d + thread * (n / 2) + i]!)
              const exact = dot(
                c,
                32,
                k => element(words, 4, row, ks[k]!),
                k => element(words, b, column, ks[k]!),
              )
              const value = floatOf(found[(block * 128 + thread) * (n / 2) + i]!)
              checkSum(value, exact, kind, 2, `block ${block} thread ${thread} d${i}`)
            }
        }
      })
    }
  })
}

for (const [name, n, transposed] of [
  ['wgmma_registers_64', 64, false],
  ['wgmma_registers_128', 128, false],
  ['wgmma_transposed_64', 64, true],
  ['wgmma_transposed_128', 128, true],
] as const) {
  probes(name, check => {
    for (const kind of Object.keys(kinds) as Kind[]) {
      check(kind, probe => {
        const { random } = probe
        const [a, d] = [4 + n * 32, 4 + n * 32 + 128 * 8]
        const input = packedValues(kind, random, d + n * 64)
        const steps = [random.int(0, 4), random.int(0, 4)]
        input.set([...steps, 0, 0])
        for (let i = d; i < input.length; i++) input[i] = wordOf(kinds[kind].value(random))
        const found = kinds[kind].exact ? probe.exact(input) : probe.run(input)
        // Each warp has 16 rows of a.
        const rows = Array.from({ length: 4 }, (_, warp) =>
          [0, 4].map(step => gatherBf16(input.subarray(a + warp * 256), 8, step, 8, fragment.a)),
        )
        for (let thread = 0; thread < 128; thread++)
          for (let i = 0; i < n / 2; i++) {
            const { row, column } = fragment.group(thread, i)
            const exact = dot(
              floatOf(input[d + thread * (n / 2) + i]!),
              32,
              k => rows[row >> 4]![k >> 4]!.get(row % 16, k % 16),
              k => {
                const at = 16 * steps[k >> 4]! + (k % 16)
                return transposed ? element(input, 4 + (column >> 6) * 64 * 32, at, column % 64) : element(input, 4, column, at)
              },
            )
            checkSum(floatOf(found[thread * (n / 2) + i]!), exact, kind, 2, `thread ${thread} d${i}`)
          }
      })
    }
  })
}
