// Tensor cores: where elements of matrices lie in registers and in swizzled memory, as the PTX ISA has it, exact products,
// and how far from them the hardware may be.
import { abs, bf16Bits, fill, floor, fromBf16, max, type Random, type Values } from '../ops/numbers.ts'
import type { Words } from './probe.ts'

/** A row-major matrix. */
export class Matrix {
  readonly columns: number
  readonly values: Values
  constructor(rows: number, columns: number) {
    this.columns = columns
    this.values = new Float64Array(rows * columns)
  }
  get(row: number, column: number): number {
    return this.values[row * this.columns + column]!
  }
  set(row: number, column: number, value: number): void {
    this.values[row * this.columns + column] = value
  }
}

const half = (registers: Words, at: number, i: number) => fromBf16((registers[at + (i >> 1)]! >>> (16 * (i & 1))) & 0xffff)

/** Figures of mma.m16n8k16 in 9.7.14.5: element i of a lane, with its row and column. */
export const fragment = {
  a: (lane: number, i: number) => ({
    row: (lane >> 2) + (i < 2 || (i >= 4 && i < 6) ? 0 : 8),
    column: (lane % 4) * 2 + (i & 1) + (i < 4 ? 0 : 8),
  }),
  b: (lane: number, i: number) => ({ row: (lane % 4) * 2 + (i & 1) + (i < 2 ? 0 : 8), column: lane >> 2 }),
  d: (lane: number, i: number) => ({ row: (lane >> 2) + (i < 2 ? 0 : 8), column: (lane % 4) * 2 + (i & 1) }),
  /** wgmma.m64nNk16 in 9.7.15.5: warps have 16 rows each. */
  group: (thread: number, i: number) => {
    const lane = thread % 32
    return { row: 16 * floor(thread / 32) + (lane >> 2) + 8 * ((i >> 1) & 1), column: 8 * (i >> 2) + (lane % 4) * 2 + (i & 1) }
  },
}

/** A matrix out of registers: `of` elements a lane, packed bf16. */
export function gatherBf16(registers: Words, stride: number, first: number, of: number, place: typeof fragment.a): Matrix {
  const matrix = new Matrix(16, 16)
  for (let lane = 0; lane < 32; lane++)
    for (let i = 0; i < of; i++) {
      const { row, column } = place(lane, i)
      matrix.set(row, column, half(registers, lane * stride + first, i))
    }
  return matrix
}

/** The byte at which element (row, k) of rows of 64 bf16 lies: bits 4 to 6 of the address are flipped by bits 7 to 9. */
export function swizzledByte(row: number, k: number): number {
  const address = row * 128 + k * 2
  return address ^ (((address >> 7) & 7) << 4)
}

/** Products and sums of a dot product: the exact value and the sum of absolute values. */
export function dot(c: number, terms: number, a: (k: number) => number, b: (k: number) => number): [number, number] {
  let sum = c
  let size = abs(c)
  for (let k = 0; k < terms; k++) {
    const product = a(k) * b(k)
    sum += product
    size += abs(product)
  }
  return [sum, size]
}

/**
 * How far one instruction with 16 products may be from the exact sum, in units of the sum of absolute values: in groups of 4
 * products or more, each group's 5 terms are cut to 24 bits of the largest and so is their sum, 4 x 6 cuts of 2^-23.
 * (16 roundings of float32, one product at a time, are 16 x 2^-24: less.)
 */
export const mmaError = 24 * 2 ** -23

export const kinds = {
  /** Sums stay whole and below 2^24: any order gives the same bits. */
  integers: { exact: true, value: (r: Random) => r.int(-64, 65) },
  normals: { exact: false, value: (r: Random) => r.normal() },
  'exponents far apart': { exact: false, value: (r: Random) => r.normal() * 2 ** r.int(-24, 25) },
  'subnormal factors': {
    exact: false,
    value: (r: Random) => (r.int(0, 2) ? r.normal() * 2 ** 60 : r.int(-127, 128) * 2 ** -133),
  },
  'infinities and NaN': {
    exact: false,
    value: (r: Random) => (r.int(0, 24) ? r.normal() : r.pick([Infinity, -Infinity, Number.NaN, 0])),
  },
} as const
export type Kind = keyof typeof kinds

/** Random bf16 values as bits, two to a word. */
export function packedValues(kind: Kind, random: Random, words: number): Words {
  return fill(new Uint32Array(words), new Float64Array(words), () => {
    const [low, high] = [bf16Bits(kinds[kind].value(random)), bf16Bits(kinds[kind].value(random))]
    return (low | (high << 16)) >>> 0
  })
}

const f32 = new Float32Array(1)
const f32Bits = new Uint32Array(f32.buffer)
export function wordOf(x: number): number {
  f32[0] = x
  return f32Bits[0]!
}
export function floatOf(word: number): number {
  f32Bits[0] = word
  return f32[0]!
}

/** A float32 sum as registers have it against the exact one. `instructions`: of 16 products each, one after the other. */
export function checkSum(found: number, [exact, size]: [number, number], kind: Kind, instructions: number, where: string): void {
  const bound = kinds[kind].exact ? 0 : max(instructions * mmaError * size, instructions * 2 ** -126)
  const holds = Number.isFinite(exact) ? abs(found - exact) <= bound : Object.is(found, exact)
  if (!holds) throw new Error(`${where} is ${found}, expected ${exact} within ${bound}`)
}
