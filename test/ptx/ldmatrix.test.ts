// ldmatrix, as it is and transposed, and stmatrix: four tiles of 8 x 8 bf16, rows anywhere in shared memory.
import { probes, sameWords, type Words } from './probe.ts'

const image = 1024 // words: 256 rows of 16 bytes
const blocks = 16

const load = (expected: (image: Words, rows: Words, tile: number, lane: number) => number) =>
  function define(check: (title: string, body: (probe: import('./probe.ts').Probe) => void) => void): void {
    check('rows in any order, some of them twice', probe => {
      const input = probe.words(blocks * (32 + image))
      for (let i = 0; i < blocks * 32; i++) input[(i >> 5) * (32 + image) + (i & 31)] = probe.random.int(0, 256)
      const want = new Uint32Array(blocks * 128)
      for (let i = 0; i < want.length; i++) {
        const words = input.subarray((i >> 7) * (32 + image), ((i >> 7) + 1) * (32 + image))
        want[i] = expected(words.subarray(32), words.subarray(0, 32), i & 3, (i >> 2) & 31)
      }
      sameWords(probe.exact(input), want, 'registers')
    })
  }

// The lanes 8 t to 8 t + 7 name the rows of tile t. Register t of lane l: row l / 4, elements 2 (l % 4) and the next.
probes(
  'ldmatrix',
  load((memory, rows, tile, lane) => memory[4 * rows[8 * tile + (lane >> 2)]! + (lane & 3)]!),
)

const half = (memory: Words, row: number, column: number) => (memory[4 * row + (column >> 1)]! >>> (16 * (column & 1))) & 0xffff
probes(
  'ldmatrix_transposed',
  load((memory, rows, tile, lane) => {
    const [first, column] = [8 * tile + 2 * (lane & 3), lane >> 2]
    return (half(memory, rows[first]!, column) | (half(memory, rows[first + 1]!, column) << 16)) >>> 0
  }),
)

probes('stmatrix', check => {
  check('32 different rows, and nothing else is written', probe => {
    const size = 160 + image
    const input = probe.words(blocks * size)
    const want = new Uint32Array(blocks * image)
    const all = Array.from({ length: 256 }, (_, row) => row)
    for (let block = 0; block < blocks; block++) {
      const words = input.subarray(block * size, (block + 1) * size)
      words.set(probe.random.shuffled(all).slice(0, 32))
      const memory = want.subarray(block * image, (block + 1) * image)
      memory.set(words.subarray(160))
      for (let lane = 0; lane < 32; lane++)
        for (let tile = 0; tile < 4; tile++)
          memory[4 * words[8 * tile + (lane >> 2)]! + (lane & 3)] = words[32 + 4 * lane + tile]!
    }
    sameWords(probe.exact(input), want, 'shared memory')
  })
})
