import type { DeviceTensor } from '../../binding.d.ts'
import { conforms, gather, type Lab, rowCounts } from './conforms.ts'
import { abs, cos, floor, fround, sameBits, sin, u32, type Values } from './numbers.ts'
import {
  addressOf,
  cacheOf,
  deal,
  type HeadShape,
  headCounts,
  headName,
  headShapes,
  type Pages,
  slotOf,
  stepOf,
  upload,
} from './paged.ts'

const base = 500000
const invFreqOf = (headDim: number) => Float64Array.from({ length: headDim / 2 }, (_, i) => fround(base ** ((-2 * i) / headDim)))

interface Rotated {
  readonly y: Values
  /** Each of the three operations has an error of u times the largest term. */
  readonly slack: Values
}

/** Pairs (d, d + headDim / 2) turned by position * invFreq, which is a float32 product. */
function rotate(x: Values, positions: readonly number[], headDim: number): Rotated {
  const half = headDim / 2
  const perRow = x.length / positions.length
  const invFreq = invFreqOf(headDim)
  const y = new Float64Array(x.length)
  const slack = new Float64Array(x.length)
  for (let at = 0; at < x.length; at += headDim)
    for (let d = 0; d < half; d++) {
      const angle = fround(positions[floor(at / perRow)]! * invFreq[d]!)
      const [a, b, c, s] = [x[at + d]!, x[at + half + d]!, cos(angle), sin(angle)]
      y[at + d] = a * c - b * s
      y[at + half + d] = b * c + a * s
      slack[at + d] = slack[at + half + d] = 3 * u32 * (abs(a) + abs(b))
    }
  return { y, slack }
}

interface Batch {
  readonly shape: HeadShape
  readonly qkv: Values
  readonly positions: readonly number[]
  readonly slots: readonly number[]
  readonly pages: Pages
}

async function append(lab: Lab, { shape, qkv, positions, slots, pages }: Batch) {
  const width = (shape.heads + 2 * shape.kvHeads) * shape.headDim
  const x = lab.activation([positions.length, width], qkv)
  const canary = cacheOf(pages, shape, 123)
  const kv = upload(
    lab,
    pages,
    shape,
    canary,
    canary.map(value => -value),
  )
  const step = stepOf({ positions: lab.i32(positions), slots: lab.i32(slots) })
  const invFreq = lab.f32([shape.headDim / 2], invFreqOf(shape.headDim)).tensor
  const q = await lab.one(op => op.ropeAppend(x.tensor, kv, step, invFreq))
  return { x: x.values, q, k: await lab.values(kv.k), v: await lab.values(kv.v) }
}

/** Checks q, every stored k and v, and that all other slots hold what they held. */
async function compare(lab: Lab, batch: Batch): Promise<void> {
  const { shape, positions, slots, pages } = batch
  const { heads, kvHeads, headDim } = shape
  const { x, q, k, v } = await append(lab, batch)
  const width = (heads + 2 * kvHeads) * headDim
  const columns = (from: number, count: number) => {
    const part = new Float64Array(positions.length * count)
    for (let t = 0; t < positions.length; t++) part.set(x.subarray(t * width + from, t * width + from + count), t * count)
    return part
  }
  const turned = rotate(columns(0, heads * headDim), positions, headDim)
  lab.close(q, turned.y, turned.slack)

  const keys = rotate(columns(heads * headDim, kvHeads * headDim), positions, headDim)
  const values = columns((heads + kvHeads) * headDim, kvHeads * headDim)
  const slackK = cacheOf(pages, shape, 0)
  const expectedK = cacheOf(pages, shape, 123)
  const expectedV = cacheOf(pages, shape, -123)
  const used = new Set<number>()
  slots.forEach((slot, t) => {
    if (slot < 0 || slot >= pages.pages * pages.pageSize) return
    for (let h = 0; h < kvHeads; h++) {
      const [from, to] = [(t * kvHeads + h) * headDim, addressOf(slot, h, pages.pageSize, shape)]
      expectedK.set(keys.y.subarray(from, from + headDim), to)
      slackK.set(keys.slack.subarray(from, from + headDim), to)
      expectedV.set(values.subarray(from, from + headDim), to)
      for (let d = 0; d < headDim; d++) used.add(to + d)
    }
  })
  sameBits(v, expectedV, 'v')
  lab.close(k, expectedK, slackK)
  k.forEach((value, i) => {
    if (!used.has(i) && value !== 123) throw new Error(`k of an unused slot, element ${i}, became ${value}`)
  })
}

function batchOf(lab: Lab, shape: HeadShape, rows: number, pageSize: number, far = 300): Batch {
  const { random } = lab
  const pages = deal(random, [rows + 7], pageSize)
  const start = random.int(0, 7)
  return {
    shape,
    qkv: random.normals(rows * (shape.heads + 2 * shape.kvHeads) * shape.headDim),
    positions: Array.from({ length: rows }, () => random.int(0, far)),
    slots: Array.from({ length: rows }, (_, t) => slotOf(pages, 0, start + t)),
    pages,
  }
}

const small: HeadShape = { heads: 4, kvHeads: 2, headDim: 24 }

conforms('ropeAppend', (check, cpuOnly) => {
  for (const [i, shape] of headShapes.entries()) {
    const rows = shape.heads > 20 ? 17 : rowCounts[i % rowCounts.length]!
    const pageSize = [1, 5, 16][i % 3]!
    check(`${headName(shape)}, ${rows} rows, pages of ${pageSize}`, async lab =>
      compare(lab, batchOf(lab, shape, rows, pageSize)),
    )
  }
  for (const [i, headDim] of [64, 128, 8, 24, 40, 104, 136].entries())
    for (const [j, heads] of headCounts.entries())
      for (const pageSize of headDim === 64 || headDim === 128 ? [1, 5, 16] : [[1, 5, 16][(i + j) % 3]!]) {
        const rows = [7, 17, 54, 1, 97][(i + j + pageSize) % 5]!
        const shape = { ...heads, headDim }
        if (rows > 20 && heads.heads > 20) continue // the reference is slow
        check(`${headName(shape)}, ${rows} scattered rows, some without a slot, pages of ${pageSize}`, async lab => {
          const batch = batchOf(lab, shape, rows, pageSize, 9000)
          const free = lab.random.shuffled(Array(batch.pages.pages * pageSize).keys())
          await compare(lab, { ...batch, slots: batch.slots.map((_, t) => (t % 4 === 2 ? -1 : free[t]!)) })
        })
      }
  for (const headDim of [8, 24, 64, 104, 128])
    check(`position 0 turns nothing, head size ${headDim}: every bit`, async lab => {
      const shape = { ...small, headDim }
      const batch = { ...batchOf(lab, shape, 17, 5), positions: new Array(17).fill(0) }
      const { x, q, k, v } = await append(lab, batch)
      for (const [t, slot] of batch.slots.entries()) {
        const row = x.subarray(t * 8 * headDim, (t + 1) * 8 * headDim)
        sameBits(q.subarray(t * 4 * headDim, (t + 1) * 4 * headDim), row.subarray(0, 4 * headDim), `q of row ${t}`)
        for (const h of [0, 1])
          for (const [stored, first] of [
            [k, 4 + h],
            [v, 6 + h],
          ] as const) {
            const at = addressOf(slot, h, 5, shape)
            sameBits(stored.subarray(at, at + headDim), row.subarray(first * headDim, (first + 1) * headDim), `row ${t}`)
          }
      }
    })
  check('rejected calls change nothing', async lab => {
    const { pages, qkv, positions, slots } = batchOf(lab, small, 7, 5)
    const canary = cacheOf(pages, small, 7)
    const kv = upload(lab, pages, small, canary, canary)
    const step = stepOf({ positions: lab.i32(positions), slots: lab.i32(slots) })
    const invFreq = lab.f32([12], invFreqOf(24)).tensor
    const x = lab.activation([7, 8 * 24], qkv).tensor
    const odd = lab.activation([7, 7 * 24], qkv.subarray(0, 7 * 7 * 24)).tensor
    const few = stepOf({ positions: lab.i32([1]), slots: lab.i32([1]) })
    const long = lab.f32([24], new Array(24).fill(1)).tensor
    await lab.rejects('ERR_SHAPE', op => op.ropeAppend(odd, kv, step, invFreq), odd, kv.k, kv.v)
    await lab.rejects('ERR_SHAPE', op => op.ropeAppend(x, kv, few, invFreq), x, kv.k, kv.v)
    await lab.rejects('ERR_SHAPE', op => op.ropeAppend(x, kv, step, long), x, kv.k, kv.v)
  })
  check('577 rows', async lab => compare(lab, batchOf(lab, { heads: 2, kvHeads: 1, headDim: 8 }, 577, 16)))
  check('one page for the whole sequence', async lab => compare(lab, batchOf(lab, small, 54, 64)))
  for (const headDim of [2, 10, 36])
    cpuOnly(`head size ${headDim}`, async lab => compare(lab, batchOf(lab, { ...small, headDim }, 7, 5)))
  check('positions 0, 8191, 20000, 131071', async lab => {
    const batch = batchOf(lab, { ...small, headDim: 64 }, 8, 5)
    await compare(lab, { ...batch, positions: [0, 1, 8191, 8192, 20000, 65535, 131071, 131070] })
  })
  check('position 0 turns nothing', async lab => {
    const batch = { ...batchOf(lab, small, 7, 5), positions: new Array(7).fill(0) }
    const { x, q } = await append(lab, batch)
    const width = (4 + 2 * 2) * 24
    sameBits(
      q,
      Float64Array.from({ length: q.length }, (_, i) => x[floor(i / 96) * width + (i % 96)]!),
    )
  })
  check('a turn keeps the length, and q . k depends on the distance alone', async lab => {
    const shape = { heads: 1, kvHeads: 1, headDim: 64 }
    const one = lab.random.normals(3 * 64)
    const qkv = new Float64Array(6 * 192)
    for (let t = 0; t < 6; t++) qkv.set(one, t * 192)
    const pages = deal(lab.random, [6], 4)
    const slots = Array.from({ length: 6 }, (_, t) => slotOf(pages, 0, t))
    const { q, k } = await append(lab, { shape, qkv, positions: [0, 3, 10, 13, 200, 203], slots, pages })
    const dot = (t: number, s: number) => {
      const key = addressOf(slots[s]!, 0, 4, shape)
      return q.subarray(t * 64, t * 64 + 64).reduce((sum, value, d) => sum + value * k[key + d]!, 0)
    }
    const norm = one.subarray(0, 128).reduce((sum, value) => sum + value * value, 0)
    // Rounded to bf16: 2 x 2^-9 of the product of the lengths. float32 angles near 203: 203 x 2^-24 each.
    const limit = norm * (lab.mode === 'bf16' ? 2 ** -8 : 5e-5)
    for (const [a, b] of [
      [2, 3],
      [4, 5],
    ] as const)
      if (!(abs(dot(b, a) - dot(1, 0)) < limit)) throw new Error(`${dot(b, a)} at a distance of 3, expected ${dot(1, 0)}`)
  })
  check('slot -1 and slots that do not exist write nothing', async lab => {
    const batch = batchOf(lab, small, 17, 5)
    const capacity = batch.pages.pages * 5
    const broken = [-1, capacity, -5, 2 ** 31 - 1, -(2 ** 31), capacity + 1]
    await compare(lab, { ...batch, slots: batch.slots.map((slot, t) => (t % 3 === 1 ? slot : broken[t % broken.length]!)) })
    await compare(lab, { ...batch, slots: batch.slots.map(() => -1) })
  })
  check('NaN stays in its token', async lab => {
    const batch = batchOf(lab, small, 7, 5)
    const width = (4 + 2 * 2) * 24
    batch.qkv.fill(Number.NaN, 3 * width, 4 * width)
    await compare(lab, batch)
  })
  check('a token has the same bits alone, among others, in any page, with any number of threads', async lab => {
    const shape = { heads: 6, kvHeads: 3, headDim: 80 }
    const [rows, width] = [54, 12 * 80]
    const batch = batchOf(lab, shape, rows, 16)
    const all = await append(lab, batch)
    const stored = (from: Values, slot: number, pageSize: number) =>
      Float64Array.from([0, 1, 2].flatMap(h => [...from.subarray(addressOf(slot, h, pageSize, shape)).subarray(0, 80)]))
    const same = async (on: Lab, order: readonly number[], pageSize: number) => {
      const pages = deal(lab.random, [order.length], pageSize)
      const slots = order.map((_, t) => slotOf(pages, 0, t))
      const positions = order.map(row => batch.positions[row]!)
      const some = await append(on, { shape, qkv: gather(batch.qkv, width, order), positions, slots, pages })
      sameBits(some.q, gather(all.q, 480, order))
      order.forEach((row, t) => {
        for (const part of ['k', 'v'] as const)
          sameBits(stored(some[part], slots[t]!, pageSize), stored(all[part], batch.slots[row]!, 16), `${part} of row ${row}`)
      })
    }
    for (const pageSize of [1, 5, 16, 64]) await same(lab, lab.random.shuffled(Array(rows).keys()), pageSize)
    for (const row of [0, 33, 53]) await same(lab, [row], 5)
    await lab.withThreads(on => same(on, lab.random.shuffled(Array(rows).keys()), 5))
  })
  check('dead rows', async lab => {
    const pages = deal(lab.random, [9], 5)
    const canary = cacheOf(pages, small, 7)
    const kv = upload(lab, pages, small, canary, canary)
    const rest = { positions: lab.i32([...Array(9).keys()]), slots: lab.i32([...Array(9).keys()].map(t => slotOf(pages, 0, t))) }
    const invFreq = lab.f32([12], invFreqOf(24)).tensor
    await lab.checkDeadRows(8 * 24, (op, _, a, step) => op.ropeAppend(a, kv, { ...step, ...rest }, invFreq) as DeviceTensor)
  })
})
