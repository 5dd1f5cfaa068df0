// Sampling in plain float64: Philox4x32-10, the kept set by sorting, the draw by looking at every candidate.
import { abs, exp, fround, log, max, min, u32, type Values } from './numbers.ts'

const mask = 0xffffffffn

/** Philox4x32-10 of Salmon et al. (SC 2011), in whole numbers of any size. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let c = counter.map(BigInt)
  let [low, high] = key.map(BigInt) as [bigint, bigint]
  for (let round = 0; round < 10; round++) {
    const a = 0xd2511f53n * c[0]!
    const b = 0xcd9e8d57n * c[2]!
    c = [(b >> 32n) ^ c[1]! ^ low, b & mask, (a >> 32n) ^ c[3]! ^ high, a & mask]
    low = (low + 0x9e3779b9n) & mask
    high = (high + 0xbb67ae85n) & mask
  }
  return c.map(Number)
}

export interface Settings {
  readonly temperature?: number
  readonly topP?: number
  readonly minP?: number
  readonly topK?: number
  readonly seed?: readonly [low: number, high: number]
  readonly position?: number
}

/** Probabilities of softmax(logit / temperature). */
export function probabilities(logits: Values, temperature = 1): Values {
  const highest = logits.reduce((a, b) => max(a, b))
  const weights = logits.map(logit => exp((logit - highest) / fround(temperature)))
  const total = weights.reduce((a, b) => a + b)
  return weights.map(weight => weight / total)
}

/** The ids that a draw may give, as sample.h defines them. */
export function kept(logits: Values, { temperature = 0, topP = 1, minP = 0, topK = 0 }: Settings): Set<number> {
  const byLogit = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b)
  if (temperature === 0) return new Set(byLogit.slice(0, 1))
  let set = byLogit
  if (topK > 0 && topK < set.length) set = set.filter(id => logits[id]! >= logits[set[topK - 1]!]!)
  if (fround(topP) < 1) {
    const p = probabilities(
      Float64Array.from(set, id => logits[id]!),
      temperature,
    )
    let [count, sum] = [0, 0]
    do sum += p[count++]!
    while (sum < fround(topP) && count < set.length)
    const least = logits[set[count - 1]!]!
    set = set.filter(id => logits[id]! >= least)
  }
  const best = logits[set[0]!]!
  const least = best + fround(temperature) * log(min(fround(minP), 1)) // p >= minP p_best, as logarithms
  return new Set(set.filter(id => logits[id] !== Number.NEGATIVE_INFINITY && logits[id]! >= least))
}

/** argmax of logit / temperature + Gumbel noise over the kept set; the lowest id among equals. */
export function draw(logits: Values, settings: Settings): number {
  const { temperature = 0, seed = [0, 0], position = 0 } = settings
  const noise = (id: number) => -log(-log((philox([id, position >>> 0, 0, 0], seed)[0]! + 0.5) / 2 ** 32))
  let [best, found] = [Number.NEGATIVE_INFINITY, -1]
  for (const id of [...kept(logits, settings)].sort((a, b) => a - b)) {
    const value = temperature === 0 ? 0 : logits[id]! / fround(temperature) + noise(id)
    if (value > best) [best, found] = [value, id]
  }
  return found
}

/** log softmax(logits)[id] */
export function logprob(logits: Values, id: number): number {
  const highest = logits.reduce((a, b) => max(a, b))
  return logits[id]! - highest - log(logits.reduce((sum, logit) => sum + exp(logit - highest), 0))
}

/** A sum of vocab / lanes terms near 1, its logarithm, two subtractions: 16 roundings of what they meet. */
export function closeLogprob(found: number, exact: number): void {
  if (!(found <= 0 && abs(found - exact) <= 16 * u32 * (1 + abs(exact))))
    throw new Error(`logprob is ${found}, expected ${exact}`)
}

/** The probability that chi-square with n degrees of freedom exceeds x: Wilson and Hilferty's cube root. */
export function chiSquareTail(x: number, n: number): number {
  const z = ((x / n) ** (1 / 3) - (1 - 2 / (9 * n))) / (2 / (9 * n)) ** 0.5
  // Upper tail of the normal distribution by Simpson's rule up to 12.
  const [steps, end] = [2000, 12]
  if (z >= end) return 0
  const h = (end - z) / steps
  let sum = 0
  for (let i = 0; i <= steps; i++) sum += exp(-((z + i * h) ** 2) / 2) * (i === 0 || i === steps ? 1 : i % 2 ? 4 : 2)
  return (sum * h) / 3 / (2 * Math.PI) ** 0.5
}
