// The arithmetic of one instruction in machine/simt.h: a fused multiply-add, a product, a power of two.
import { abs, fround } from '../ops/numbers.ts'
import { floatOf, wordOf } from './fragments.ts'
import { type Probe, probes } from './probe.ts'

const scratch = new DataView(new ArrayBuffer(8))

/**
 * a b + c rounded once to float32. The product is exact in float64; the sum is rounded to odd there, which leaves the second
 * rounding what the exact sum would give (Boldo and Melquiond 2008).
 */
function fusedExact(a: number, b: number, c: number): number {
  const p = a * b
  const s = p + c
  const v = s - p
  const error = p - (s - v) + (c - v)
  if (error === 0 || !Number.isFinite(s)) return fround(s)
  scratch.setFloat64(0, s)
  const bits = scratch.getBigUint64(0)
  if (bits % 2n === 0n) scratch.setBigUint64(0, error > 0 === s > 0 ? bits + 1n : bits - 1n)
  return fround(scratch.getFloat64(0))
}

function arithmetic(probe: Probe, value: () => number): void {
  const count = 64 * 32
  const input = Uint32Array.from({ length: count * 3 }, () => wordOf(value()))
  const found = probe.run(input)
  for (let i = 0; i < count; i++) {
    const [a, b, c] = [...input.subarray(3 * i, 3 * i + 3)].map(floatOf) as [number, number, number]
    const [fused, product, power] = [...found.subarray(3 * i, 3 * i + 3)].map(floatOf) as [number, number, number]
    if (!Object.is(fused, fusedExact(a, b, c))) throw new Error(`${a} ${b} + ${c} is ${fused}, expected ${fusedExact(a, b, c)}`)
    if (!Object.is(product, fround(a * b))) throw new Error(`${a} ${b} is ${product}, expected ${fround(a * b)}`)
    const exact = 2 ** a
    const ulp = 2 ** (Math.max(Math.floor(a), -126) - 23)
    const flushed = power === 0 && exact < 2 ** -126 + 2 * ulp // .ftz: what is not normal is 0
    const normal = power >= 2 ** -126 && abs(power - exact) <= 2 * ulp
    const close = exact >= 2 ** 128 ? power === Infinity : flushed || normal
    if (!close) throw new Error(`2 ^ ${a} is ${power}, expected ${exact}`)
  }
}

probes('arithmetic', check => {
  check('normals', probe => arithmetic(probe, () => probe.random.normal() * 40))
  check('sums that cancel, ties', probe => arithmetic(probe, () => probe.random.int(-4097, 4098) * 2 ** -probe.random.int(0, 13)))
  check('subnormal results', probe => arithmetic(probe, () => probe.random.normal() * 2 ** -probe.random.int(60, 76)))
})
