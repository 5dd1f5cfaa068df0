// Numbers for the op tests: bf16, a seeded generator, and what "close enough" means.

export type Values = Float64Array<ArrayBuffer>

// A global costs a microsecond inside jest's sandbox: inner loops use these.
export const { abs, ceil, cos, exp, floor, fround, log, max, min, sin, sqrt } = Math
export const { is } = Object
export const { isFinite: finite, isNaN: nan } = Number
const { imul } = Math
const { PI } = Math

const scratch = new DataView(new ArrayBuffer(8))

const f32 = new Float32Array(1)
const f32Bits = new Uint32Array(f32.buffer)

/** The bf16 nearest to any float64, ties to even, rounded once; as its 16 bits. */
export function bf16Bits(x: number): number {
  f32[0] = x
  if (f32[0] === x && (f32Bits[0]! & 0xffff) === 0) return f32Bits[0]! >>> 16 // it is one
  if (nan(x)) return 0x7fff
  let rounded = x
  if (finite(x) && x !== 0) {
    scratch.setFloat64(0, x)
    const exponent = max(((scratch.getUint16(0) >> 4) & 0x7ff) - 1023, -126)
    const ulp = 2 ** (exponent - 7)
    const steps = x / ulp // exact: a power of two
    const down = floor(steps)
    const above = steps - down
    rounded = (above > 0.5 || (above === 0.5 && down % 2 !== 0) ? down + 1 : down) * ulp
    if (rounded === 0 && x < 0) rounded = -0
  }
  scratch.setFloat32(0, rounded) // exact, or infinite beyond the largest
  return scratch.getUint16(0)
}

/** The float64 with the value of a bf16. */
export function fromBf16(bits: number): number {
  f32Bits[0] = bits << 16
  return f32[0]!
}

/** Array.from(values, map) without its iterators. */
export function fill<A extends { [index: number]: number }>(into: A, values: ArrayLike<number>, map = (x: number) => x): A {
  for (let i = 0; i < values.length; i++) into[i] = map(values[i]!)
  return into
}

export const roundBf16 = (x: number): number => fromBf16(bf16Bits(x))

/** Where a bf16 lies among all of them in order: neighbours differ by one, and -0 is 0. */
const rank = (bits: number): number => (bits & 0x8000 ? -(bits & 0x7fff) : bits)

/** Uniform, normal and whole random numbers from a seed (mulberry32). */
export class Random {
  #state: number
  constructor(seed: number) {
    this.#state = seed >>> 0
  }
  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let z = this.#state
    z = imul(z ^ (z >>> 15), z | 1)
    z ^= z + imul(z ^ (z >>> 7), z | 61)
    return (z ^ (z >>> 14)) >>> 0
  }
  uniform(): number {
    return (this.u32() + 0.5) / 2 ** 32
  }
  normal(): number {
    return sqrt(-2 * log(this.uniform())) * cos(2 * PI * this.uniform())
  }
  /** A whole number in [from, to). */
  int(from: number, to: number): number {
    return from + floor(this.uniform() * (to - from))
  }
  pick<T>(from: readonly T[]): T {
    return from[this.int(0, from.length)]!
  }
  normals(count: number, std = 1): Values {
    return Float64Array.from({ length: count }, () => this.normal() * std)
  }
  ints(count: number, from: number, to: number): Values {
    return Float64Array.from({ length: count }, () => this.int(from, to))
  }
  shuffled<T>(from: Iterable<T>): T[] {
    const list = [...from]
    for (let i = list.length - 1; i > 0; i--) {
      const j = this.int(0, i + 1)
      ;[list[i], list[j]] = [list[j]!, list[i]!]
    }
    return list
  }
}

/** A number from a name, to seed a case with. */
export function hash(name: string): number {
  let h = 2166136261
  for (const c of name) h = imul(h ^ c.codePointAt(0)!, 16777619)
  return h >>> 0
}

/** The float32 unit roundoff. */
export const u32 = 2 ** -24

const show = (i: number, found: number, exact: number) => `[${i}] is ${found}, expected ${exact}`

/** Sum of squared differences over the sum of squares. NaN and infinity must be where they are expected. */
export function nmse(found: Values, exact: Values): number {
  same(found.length, exact.length, 'length')
  let difference = 0
  let square = 0
  for (let i = 0; i < exact.length; i++) {
    if (finite(exact[i])) {
      if (!finite(found[i])) throw new Error(show(i, found[i]!, exact[i]!))
      difference += (found[i]! - exact[i]!) ** 2
      square += exact[i]! ** 2
    } else if (!is(found[i], exact[i])) throw new Error(show(i, found[i]!, exact[i]!))
  }
  return difference === 0 ? 0 : difference / square
}

export interface Allowance {
  /** Absolute error that each element may have for a reason the test gives: a bound on cancellation. */
  readonly slack?: ArrayLike<number> | undefined
  /** NMSE of float32 results. */
  readonly nmse?: number
}

/** float32 results: 1e-7, the yardstick of every device; float32 arithmetic itself reaches 1e-12 in the tests' sizes. */
export function closeF32(found: Values, exact: Values, limit = 1e-7): void {
  const error = nmse(found, exact)
  if (!(error <= limit)) throw new Error(`NMSE is ${error}, expected at most ${limit}`)
}

/**
 * bf16 results: within one ulp of the exact result rounded once. Float32 arithmetic leaves an error of a few 2^-24, so the
 * two roundings disagree for about 1 in 2^14 elements; a second rounding on the way makes it every fourth. 1% is the limit.
 */
export function closeBf16(found: Values, exact: Values, slack?: ArrayLike<number>): void {
  same(found.length, exact.length, 'length')
  let different = 0
  for (let i = 0; i < exact.length; i++) {
    const [a, b] = [bf16Bits(found[i]!), bf16Bits(exact[i]!)]
    if (a === b || (rank(a) === 0 && rank(b) === 0)) continue
    const withinUlp = !nan(found[i]) && !nan(exact[i]) && abs(rank(a) - rank(b)) <= 1
    const withinSlack = slack !== undefined && abs(found[i]! - exact[i]!) <= slack[i]!
    if (!withinUlp && !withinSlack) throw new Error(show(i, found[i]!, roundBf16(exact[i]!)))
    if (!withinSlack) different++
  }
  if (different > max(1, exact.length / 100))
    throw new Error(`${different} of ${exact.length} elements differ by an ulp: more than one rounding`)
}

/** Equal as bits: -0 is not 0, NaN is NaN. `part` says what it is. */
export function sameBits(found: ArrayLike<number>, expected: ArrayLike<number>, part = 'element'): void {
  same(found.length, expected.length, `${part}: length`)
  for (let i = 0; i < expected.length; i++)
    if (!is(found[i], expected[i])) throw new Error(`${part} ${show(i, found[i]!, expected[i]!)}`)
}

function same(found: number, expected: number, what: string): void {
  if (found !== expected) throw new Error(`${what} is ${found}, expected ${expected}`)
}
