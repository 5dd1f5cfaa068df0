// wgmma m64nNk16: matrices in swizzled shared memory, one of them written by the threads before fence.proxy.async, the other
// by the asynchronous proxy.
import { fromBf16 } from '../ops/numbers.ts'
import { checkSum, dot, floatOf, fragment, type Kind, kinds, packedValues, swizzledByte, wordOf } from './fragments.ts'
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
