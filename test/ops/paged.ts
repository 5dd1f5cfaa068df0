// Batches over a paged cache, for the tests of ropeAppend and attention.
import type { DeviceTensor, KvLayer, StepInputs } from '../../binding.d.ts'
import type { Lab } from './conforms.ts'
import { ceil, max, type Random, type Values } from './numbers.ts'

export interface HeadShape {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
}
export const headShapes: readonly HeadShape[] = [
  { heads: 32, kvHeads: 8, headDim: 64 },
  { heads: 24, kvHeads: 8, headDim: 128 },
  { heads: 4, kvHeads: 4, headDim: 8 },
  { heads: 8, kvHeads: 1, headDim: 24 },
  { heads: 6, kvHeads: 3, headDim: 80 },
  { heads: 2, kvHeads: 1, headDim: 64 },
  { heads: 4, kvHeads: 4, headDim: 64 },
  { heads: 8, kvHeads: 1, headDim: 128 },
  { heads: 10, kvHeads: 2, headDim: 40 },
]
/** Grouped, not grouped, one key/value head for all. */
export const headCounts = [
  { heads: 32, kvHeads: 8 },
  { heads: 4, kvHeads: 4 },
  { heads: 8, kvHeads: 1 },
] as const
export const headName = ({ heads, kvHeads, headDim }: HeadShape): string => `${heads}/${kvHeads} heads of ${headDim}`

/** One sequence of a step: `rows` queries, the last of which sees `length` keys. */
export interface Span {
  readonly length: number
  readonly rows: number
}

/** Where the tokens of sequences lie: page tables with -1 after their end. */
export interface Pages {
  readonly pageSize: number
  readonly pages: number
  readonly table: readonly (readonly number[])[]
}

/** Pages in a random order, with some that nobody owns. spare: columns of the table after those of the longest sequence. */
export function deal(random: Random, lengths: readonly number[], pageSize: number, shuffle = true, spare = 1): Pages {
  const counts = lengths.map(length => ceil(length / pageSize))
  const owned = counts.reduce((a, b) => a + b, 0)
  const free = [...Array(owned + 3).keys()]
  const order = shuffle ? random.shuffled(free) : free
  const most = counts.reduce((a, b) => max(a, b), 0) + spare
  let next = 0
  const table = counts.map(count => {
    const mine = order.slice(next, next + count)
    next += count
    return [...mine, ...new Array(most - count).fill(-1)]
  })
  return { pageSize, pages: free.length, table }
}

/** page * pageSize + offset of a position of a sequence. */
export const slotOf = ({ table, pageSize }: Pages, seq: number, position: number): number =>
  table[seq]![Math.floor(position / pageSize)]! * pageSize + (position % pageSize)

/** Index of element 0 of a slot in [pages, kvHeads, pageSize, headDim]. */
export const addressOf = (slot: number, head: number, pageSize: number, { kvHeads, headDim }: HeadShape): number =>
  ((((slot - (slot % pageSize)) / pageSize) * kvHeads + head) * pageSize + (slot % pageSize)) * headDim

/** A cache whose elements are all `value`. */
export const cacheOf = (pages: Pages, { kvHeads, headDim }: HeadShape, value = Number.NaN): Values =>
  new Float64Array(pages.pages * kvHeads * pages.pageSize * headDim).fill(value)

export function upload(lab: Lab, pages: Pages, shape: HeadShape, k: Values, v: Values): KvLayer {
  const axes = [pages.pages, shape.kvHeads, pages.pageSize, shape.headDim]
  return { k: lab.activation(axes, k).tensor, v: lab.activation(axes, v).tensor }
}

/** Only the fields of a step that an op reads. */
export const stepOf = (fields: Record<string, DeviceTensor>): StepInputs => fields as unknown as StepInputs
