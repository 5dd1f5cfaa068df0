// The problems of attention's tests: sequences over a paged cache, and what the op makes of them.
import type { Lab } from './conforms.ts'
import { abs, exp, floor, max, sameBits, sqrt, u32, type Values } from './numbers.ts'
import { addressOf, cacheOf, deal, type HeadShape, type Pages, type Span, slotOf, stepOf, upload } from './paged.ts'

/** Queries, and the keys and values of every sequence: [length, kvHeads, headDim]. */
export interface Problem {
  readonly shape: HeadShape
  readonly spans: readonly Span[]
  /** [rows of all spans, heads, headDim] */
  readonly q: Values
  readonly k: readonly Values[]
  readonly v: readonly Values[]
}

export function problemOf(lab: Lab, shape: HeadShape, spans: readonly Span[], std = 1): Problem {
  const rows = spans.reduce((sum, span) => sum + span.rows, 0)
  const some = (length: number) => lab.round(lab.random.normals(length * shape.kvHeads * shape.headDim, std))
  const q = lab.round(lab.random.normals(rows * shape.heads * shape.headDim, std))
  return { shape, spans, q, k: spans.map(span => some(span.length)), v: spans.map(span => some(span.length)) }
}

/** softmax(q k^T / sqrt(headDim)) v over the keys that each row sees; head h reads key/value head floor(h / group). */
export function reference({ shape: { heads, kvHeads, headDim }, spans, q, k, v }: Problem): { y: Values; slack: Values } {
  const y = new Float64Array(q.length)
  const slack = new Float64Array(q.length)
  let row = 0
  for (const [s, { length, rows }] of spans.entries())
    for (let i = 0; i < rows; i++, row++)
      for (let h = 0; h < heads; h++) {
        const visible = length - rows + i + 1
        const at = (row * heads + h) * headDim
        const kv = (j: number) => (j * kvHeads + floor(h / (heads / kvHeads))) * headDim
        const scores = new Float64Array(visible)
        let highest = -1e300
        let size = 0 // of the largest sum of |q| |k|: its rounding error shifts an exponent
        for (let j = 0; j < visible; j++) {
          let [sum, absolute] = [0, 0]
          for (let d = 0, key = kv(j); d < headDim; d++) {
            const product = q[at + d]! * k[s]![key + d]!
            sum += product
            absolute += abs(product)
          }
          scores[j] = sum / sqrt(headDim)
          highest = max(highest, scores[j]!)
          size = max(size, absolute / sqrt(headDim))
        }
        let total = 0
        for (let j = 0; j < visible; j++) total += scores[j] = exp(scores[j]! - highest)
        for (let j = 0; j < visible; j++)
          for (let d = 0, value = kv(j); d < headDim; d++) {
            const term = (scores[j]! / total) * v[s]![value + d]!
            y[at + d] = y[at + d]! + term
            // u for: the headDim terms of a score, whose errors add like their root, here and in the total; the keys; exp
            slack[at + d] = slack[at + d]! + abs(term) * u32 * (2 * sqrt(headDim) * size + visible + 8)
          }
      }
  return { y, slack }
}

/** Runs a problem with its keys and values in those pages; every slot that no row sees is NaN, and stays as it is. */
export async function attend(lab: Lab, problem: Problem, pages: Pages, damage?: Damage) {
  const { shape, spans, q } = problem
  const [k, v] = [cacheOf(pages, shape), cacheOf(pages, shape)]
  for (const [s, { length }] of spans.entries())
    for (let j = 0; j < length; j++)
      for (let h = 0; h < shape.kvHeads; h++) {
        const from = (j * shape.kvHeads + h) * shape.headDim
        const to = addressOf(slotOf(pages, s, j), h, pages.pageSize, shape)
        k.set(problem.k[s]!.subarray(from, from + shape.headDim), to)
        v.set(problem.v[s]!.subarray(from, from + shape.headDim), to)
      }
  const kv = upload(lab, pages, shape, k, v)
  const queryStart = [0]
  for (const { rows } of spans) queryStart.push(queryStart.at(-1)! + rows)
  const table = pages.table.map(row => [...row])
  const lengths = spans.map(span => span.length)
  if (damage && 'page' in damage) table[damage.seq ?? 3]![damage.page[0]] = damage.page[1]
  if (damage && 'length' in damage) lengths[damage.seq ?? 3] = damage.length
  const step = stepOf({
    queryStart: lab.i32(queryStart),
    kvLength: lab.i32(lengths),
    pageTable: lab.i32(table.flat(), [table.length, table[0]!.length]),
  })
  const input = lab.activation([q.length / (shape.heads * shape.headDim), shape.heads, shape.headDim], q).tensor
  const y = await lab.one(op => op.attention(input, kv, step))
  sameBits(await lab.values(kv.k), k, 'k')
  sameBits(await lab.values(kv.v), v, 'v')
  return y
}

export async function compare(lab: Lab, problem: Problem, pageSize: number, spare = 1): Promise<void> {
  const pages = deal(lab.random, lengthsOf(problem.spans), pageSize, true, spare)
  const { y, slack } = reference(problem)
  lab.close(await attend(lab, problem, pages), y, slack)
}

export const lengthsOf = (spans: readonly Span[]) => spans.map(span => span.length)

// Prefill, chunks that start anywhere, decode.
export const mixed: readonly Span[] = [
  { length: 17, rows: 17 },
  { length: 1, rows: 1 },
  { length: 54, rows: 1 },
  { length: 33, rows: 7 },
  { length: 16, rows: 1 },
  { length: 40, rows: 9 },
]
export const smallOn = (lab: Lab): HeadShape => ({ heads: 6, kvHeads: 3, headDim: lab.anyHead(24) })

/** What is wrong with a sequence, number 3 if not told: a page of its table, or its length. */
export type Damage = { readonly seq?: number } & (
  | { readonly page: readonly [index: number, id: number] }
  | { readonly length: number }
)
