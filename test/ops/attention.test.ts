import type { DeviceTensor } from '../../binding.d.ts'
import { conforms, type Lab, rowCounts } from './conforms.ts'
import { abs, exp, finite, floor, max, min, nan, sameBits, sqrt, u32, type Values } from './numbers.ts'
import {
  addressOf,
  cacheOf,
  deal,
  type HeadShape,
  headCounts,
  headName,
  headShapes,
  type Pages,
  type Span,
  slotOf,
  stepOf,
  upload,
} from './paged.ts'

/** Queries, and the keys and values of every sequence: [length, kvHeads, headDim]. */
interface Problem {
  readonly shape: HeadShape
  readonly spans: readonly Span[]
  /** [rows of all spans, heads, headDim] */
  readonly q: Values
  readonly k: readonly Values[]
  readonly v: readonly Values[]
}

function problemOf(lab: Lab, shape: HeadShape, spans: readonly Span[], std = 1): Problem {
  const rows = spans.reduce((sum, span) => sum + span.rows, 0)
  const some = (length: number) => lab.round(lab.random.normals(length * shape.kvHeads * shape.headDim, std))
  const q = lab.round(lab.random.normals(rows * shape.heads * shape.headDim, std))
  return { shape, spans, q, k: spans.map(span => some(span.length)), v: spans.map(span => some(span.length)) }
}

/** softmax(q k^T / sqrt(headDim)) v over the keys that each row sees; head h reads key/value head floor(h / group). */
function reference({ shape: { heads, kvHeads, headDim }, spans, q, k, v }: Problem): { y: Values; slack: Values } {
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
async function attend(lab: Lab, problem: Problem, pages: Pages, damage?: Damage) {
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
  if (damage && 'page' in damage) table[3]![damage.page[0]] = damage.page[1]
  if (damage && 'length' in damage) lengths[3] = damage.length
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

async function compare(lab: Lab, problem: Problem, pageSize: number): Promise<void> {
  const pages = deal(lab.random, lengthsOf(problem.spans), pageSize)
  const { y, slack } = reference(problem)
  lab.close(await attend(lab, problem, pages), y, slack)
}

const lengthsOf = (spans: readonly Span[]) => spans.map(span => span.length)

// Prefill, chunks that start anywhere, decode.
const mixed: readonly Span[] = [
  { length: 17, rows: 17 },
  { length: 1, rows: 1 },
  { length: 54, rows: 1 },
  { length: 33, rows: 7 },
  { length: 16, rows: 1 },
  { length: 40, rows: 9 },
]
const smallOn = (lab: Lab): HeadShape => ({ heads: 6, kvHeads: 3, headDim: lab.anyHead(24) })

/** What is wrong with sequence 3, of 33 keys and 7 rows: a page of its table, or its length; how many rows cannot be computed. */
type Damage = { readonly page: readonly [index: number, id: number] } | { readonly length: number }
const damages: readonly (readonly [name: string, damage: Damage, rows: number])[] = [
  ['a page that is -1', { page: [2, -1] }, 7],
  ['a page beyond the cache', { page: [0, 1 << 20] }, 7],
  ['a page of -2^31', { page: [0, -(2 ** 31)] }, 7],
  ['more keys than the table holds', { length: 2 ** 31 - 1 }, 7],
  ['no key at all', { length: 0 }, 7],
  ['a negative length', { length: -(2 ** 31) }, 7],
  ['fewer keys than rows', { length: 4 }, 3],
]

conforms('attention', (check, cpuOnly) => {
  for (const [i, shape] of headShapes.entries()) {
    const [pageSize, run] = [[16, 5, 1][i % 3]!, [64, 128].includes(shape.headDim) ? check : cpuOnly]
    const spans = shape.heads > 20 ? mixed.slice(0, 4).map(({ length, rows }) => ({ length, rows: min(rows, 7) })) : mixed
    run(`${headName(shape)}, pages of ${pageSize}`, async lab => compare(lab, problemOf(lab, shape, spans), pageSize))
  }
  for (const headDim of [64, 128])
    for (const heads of headCounts)
      for (const pageSize of [1, 5, 16]) {
        const shape = { ...heads, headDim }
        const at = `${headName(shape)}, pages of ${pageSize}`
        const kinds: Record<string, readonly Span[]> = {
          prefill: [{ length: 23, rows: 23 }],
          'the end of a chunk': [{ length: 67, rows: 7 }],
          decode: [1, 66, 17].map(length => ({ length, rows: 1 })),
        }
        for (const [kind, spans] of Object.entries(kinds))
          check(`${kind}: ${at}`, async lab => compare(lab, problemOf(lab, shape, spans), pageSize))
      }
  // Blocks of keys are 64 long, splits 256, tiles 64 rows of 16 a warp: here 4 of them are one token.
  for (const length of [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 193, 255, 256, 257, 320, 511, 512, 513, 577])
    check(`${length} keys: one row, and the rows around the edges of tiles`, async lab => {
      const rows = [1, 3, 4, 5, 15, 16, 17].filter(n => n === 1 || (n <= length && length < 300))
      const spans = rows.map(n => ({ length, rows: n }))
      await compare(lab, problemOf(lab, { heads: 4, kvHeads: 1, headDim: 64 }, spans), 16)
    })
  for (const rows of rowCounts)
    for (const heads of [1, 2])
      check(`prefill of ${rows} rows by ${heads} heads of 128`, async lab =>
        compare(lab, problemOf(lab, { heads, kvHeads: 1, headDim: 128 }, [{ length: rows, rows }]), 5),
      )
  check('prefill of 577', async lab =>
    compare(lab, problemOf(lab, { heads: 1, kvHeads: 1, headDim: 64 }, [{ length: 577, rows: 577 }]), 16),
  )
  for (const headDim of [64, 128])
    for (const heads of headCounts)
      check(`equal keys, whole values: the mean, exactly, ${headName({ ...heads, headDim })}`, async lab => {
        const shape = { ...heads, headDim }
        const spans = [1, 2, 8, 64, 256].map(length => ({ length, rows: 1 }))
        const problem = problemOf(lab, shape, spans)
        for (const k of problem.k) k.fill(0.25)
        for (const v of problem.v) v.set(lab.random.ints(v.length, -100, 101))
        const y = await attend(lab, problem, deal(lab.random, lengthsOf(spans), 16))
        const group = shape.heads / shape.kvHeads
        const exact = y.map((_, i) => {
          const [s, h, d] = [floor(i / (shape.heads * headDim)), floor((i / headDim) % shape.heads), i % headDim]
          let sum = 0
          for (let at = floor(h / group) * headDim + d; at < problem.v[s]!.length; at += shape.kvHeads * headDim)
            sum += problem.v[s]![at]!
          return sum / spans[s]!.length
        })
        sameBits(y, lab.round(exact))
      })
  check('rejected calls change nothing', async lab => {
    const shape = { heads: 6, kvHeads: 3, headDim: 64 }
    const pages = deal(lab.random, [12], 5)
    const canary = cacheOf(pages, shape, 7)
    const kv = upload(lab, pages, shape, canary, canary)
    const step = { queryStart: lab.i32([0, 3]), kvLength: lab.i32([12]), pageTable: lab.i32(pages.table[0]!, [1, 4]) }
    const q = (heads: number, headDim: number) =>
      lab.activation([3, heads, headDim], lab.random.normals(3 * heads * headDim)).tensor
    const reject = (code: string, x: DeviceTensor, other: Record<string, DeviceTensor> = {}) =>
      lab.rejects(code, op => op.attention(x as never, kv, stepOf({ ...step, ...other })), x, kv.k, kv.v)
    await reject('ERR_SHAPE', q(5, 64))
    await reject('ERR_SHAPE', q(6, 32))
    await reject('ERR_SHAPE', q(6, 64), { queryStart: lab.i32([0, 1, 3]) })
    await reject('ERR_SHAPE', q(6, 64), { pageTable: step.kvLength })
    await reject('ERR_DTYPE', q(6, 64), { kvLength: lab.f32([1], [12]).tensor })
  })
  for (const rows of [1, 7, 17, 54, 97])
    check(`prefill of ${rows}`, async lab => compare(lab, problemOf(lab, smallOn(lab), [{ length: rows, rows }]), 16))
  check('577 keys, 1 and 9 rows', async lab => {
    const shape = { heads: 2, kvHeads: 1, headDim: 64 }
    for (const rows of [1, 9]) await compare(lab, problemOf(lab, shape, [{ length: 577, rows }]), 16)
  })
  check('every length around the edges of vectors and pages, decoding', async lab => {
    const spans = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49].map(length => ({ length, rows: 1 }))
    for (const pageSize of [1, 5, 16]) await compare(lab, problemOf(lab, smallOn(lab), spans), pageSize)
  })
  check('lengths around the edges of blocks and splits of keys', async lab => {
    const shape = { heads: 4, kvHeads: 1, headDim: 64 }
    const lengths = [63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 511, 512, 513]
    const spans = lengths.map((length, i) => ({ length, rows: i % 3 === 2 ? 5 : 1 }))
    await compare(lab, problemOf(lab, shape, spans), 16)
  })
  check('long sequences again and again: the same bits', async lab => {
    const problem = problemOf(lab, { heads: 4, kvHeads: 1, headDim: 64 }, [
      { length: 600, rows: 1 },
      { length: 700, rows: 1 },
    ])
    const pages = deal(lab.random, [600, 700], 16)
    const first = await attend(lab, problem, pages)
    for (let i = 0; i < (lab.device.name === 'simt' ? 30 : 3); i++)
      sameBits(await attend(lab, problem, pages), first, `run ${i}: element`)
  })
  check('few rows after many keys, again and again: half of a tile has nothing to do', async lab => {
    const problem = problemOf(lab, { heads: 2, kvHeads: 2, headDim: 64 }, [{ length: 1500, rows: 2 }])
    const pages = deal(lab.random, [1500], 16)
    const { y, slack } = reference(problem)
    for (let i = 0; i < (lab.device.name === 'simt' ? 20 : 2); i++) lab.close(await attend(lab, problem, pages), y, slack)
  })
  check('queries start anywhere in a sequence', async lab => {
    const spans = [1, 2, 8, 16, 23].flatMap(rows => [24, 25, 31].map(length => ({ length, rows })))
    await compare(lab, problemOf(lab, { heads: 2, kvHeads: 2, headDim: lab.anyHead(8) }, spans), 5)
  })
  check('one page a sequence', async lab => compare(lab, problemOf(lab, smallOn(lab), mixed), 64))
  check('large scores: softmax is nearly a choice', async lab => compare(lab, problemOf(lab, smallOn(lab), mixed, 6), 5))
  check('equal keys: the mean of the values', async lab => {
    const problem = problemOf(lab, smallOn(lab), mixed)
    for (const k of problem.k) k.fill(0.5)
    await compare(lab, problem, 5)
  })
  check('one key decides: its value comes through exactly', async lab => {
    const headDim = lab.anyHead(8)
    const problem = problemOf(lab, { heads: 1, kvHeads: 1, headDim }, [{ length: 20, rows: 1 }])
    problem.q.fill(16)
    problem.k[0]!.fill(-16).fill(16, 13 * headDim, 14 * headDim)
    sameBits(await attend(lab, problem, deal(lab.random, [20], 5)), problem.v[0]!.subarray(13 * headDim, 14 * headDim))
  })

  check('the same bits in every page size, page order, batch and chunk, with any number of threads', async lab => {
    const small = smallOn(lab)
    const problem = problemOf(lab, small, mixed)
    const lengths = mixed.map(span => span.length)
    const width = small.heads * small.headDim
    const expected = await attend(lab, problem, deal(lab.random, lengths, 16, false))
    for (const pageSize of [1, 3, 5, 16, 64])
      sameBits(await attend(lab, problem, deal(lab.random, lengths, pageSize)), expected, `pages of ${pageSize}: element`)
    await lab.withThreads(async on => {
      for (let i = 0; i < 3; i++) sameBits(await attend(on, problem, deal(lab.random, lengths, 5)), expected)
    })
    let row = 0
    for (const [s, { length, rows }] of mixed.entries())
      for (let i = 0; i < rows; i++, row++) {
        if (row % 3 !== 0) continue
        const visible = length - rows + i + 1
        const part = (from: Values) => from.slice(0, visible * small.kvHeads * small.headDim)
        const q = problem.q.slice(row * width, (row + 1) * width)
        const alone = {
          shape: small,
          spans: [{ length: visible, rows: 1 }],
          q,
          k: [part(problem.k[s]!)],
          v: [part(problem.v[s]!)],
        }
        const y = await attend(lab, alone, deal(lab.random, [visible], 5))
        sameBits(y, expected.subarray(row * width, (row + 1) * width), `row ${row} alone: element`)
      }
  })
  check('a NaN key reaches the rows that see it and no other', async lab => {
    const small = smallOn(lab)
    const problem = problemOf(lab, small, [{ length: 20, rows: 10 }, ...mixed])
    const key = small.kvHeads * small.headDim
    problem.k[0]!.fill(Number.NaN, 15 * key, 16 * key) // seen by rows 5 to 9
    const width = small.heads * small.headDim
    const y = await attend(lab, problem, deal(lab.random, lengthsOf(problem.spans), 5))
    for (let i = 0; i < y.length; i++) {
      const row = floor(i / width)
      if (Number.isNaN(y[i]) !== (row >= 5 && row < 10)) throw new Error(`row ${row} is ${y[i]}`)
    }
  })

  const spoilers: readonly (readonly [value: number, position: number, columns: number])[] = [
    [Number.NaN, 0, 1],
    [Number.NaN, 3, 64],
    [Number.NaN, 62, 64],
    [Number.POSITIVE_INFINITY, 15, 1],
    [Number.POSITIVE_INFINITY, 63, 64],
    [Number.NEGATIVE_INFINITY, 64, 1],
    [Number.NaN, 64, 64],
    [Number.NaN, 96, 1],
  ]
  for (const [value, position, columns] of spoilers)
    check(`${value} in ${columns} columns of value ${position}: in the rows that see it and no other`, async lab => {
      const shape = { heads: 6, kvHeads: 2, headDim: 64 }
      const spans = [
        { length: 97, rows: 97 },
        { length: 99, rows: 4 },
        { length: 97, rows: 1 },
        { length: 20, rows: 20 },
      ]
      const problem = problemOf(lab, shape, spans)
      for (const part of [problem.k, problem.v]) part[2]!.set(part[0]!) // sequence 2: the last token of sequence 0, alone
      problem.q.copyWithin(101 * 6 * 64, 96 * 6 * 64, 97 * 6 * 64)
      const lengths = spans.map(span => span.length)
      const pages = deal(lab.random, lengths, 5)
      const expected = await attend(lab, problem, pages)
      const from = columns === 1 ? 37 : 0
      const at = (position * 2 + 1) * 64 + from // of key/value head 1
      for (const [s, v] of problem.v.entries()) if (position < lengths[s]!) v.fill(value, at, at + columns)
      const y = await attend(lab, problem, pages)
      let row = 0
      for (const { length, rows } of spans)
        for (let i = 0; i < rows; i++, row++)
          for (let h = 3; length - rows + i >= position && h < 6; h++) {
            const first = (row * 6 + h) * 64 + from
            const spoiled = y.subarray(first, first + columns)
            // An infinity times a weight that is the sum of two numbers, one of them 0, is NaN.
            if (spoiled.some(nan(value) ? x => !nan(x) : finite)) throw new Error(`row ${row}, head ${h} is ${spoiled}`)
            expected.set(spoiled, first)
          }
      sameBits(y, expected)
      sameBits(y.subarray(101 * 6 * 64, 102 * 6 * 64), y.subarray(96 * 6 * 64, 97 * 6 * 64), 'alone: element')
    })

  for (const [name, damage, last] of damages)
    check(`${name}: rows of NaN in that sequence, and in no other`, async lab => {
      const small = smallOn(lab)
      const problem = problemOf(lab, small, mixed)
      const lengths = mixed.map(span => span.length)
      const pages = deal(lab.random, lengths, 5)
      const expected = await attend(lab, problem, pages)
      const y = await attend(lab, problem, pages, damage)
      const width = small.heads * small.headDim
      for (let row = 0; row < y.length / width; row++) {
        const [found, before] = [y, expected].map(all => all!.subarray(row * width, (row + 1) * width))
        const inside = row >= 19 && row < 26 // sequence 3
        if (!inside) sameBits(found!, before!, `row ${row}: element`)
        else sameBits(found!.map(Number.isNaN as never), before!.fill(row < 19 + last ? 1 : 0), `row ${row}: NaN`)
      }
    })

  check('a broken last page: the rows before it are sound', async lab => {
    const small = smallOn(lab)
    const problem = problemOf(lab, small, mixed)
    const pages = deal(lab.random, lengthsOf(mixed), 5)
    const expected = await attend(lab, problem, pages)
    const y = await attend(lab, problem, pages, { page: [6, 2 ** 31 - 1] }) // of keys 30 to 32: rows 4, 5 and 6 see it
    const width = small.heads * small.headDim
    const [from, end] = [(19 + 4) * width, 26 * width]
    sameBits(y, expected.fill(Number.NaN, from, end))
  })
  check('rows of no sequence are left alone; a sequence may have no rows', async lab => {
    const small = smallOn(lab)
    const pages = deal(lab.random, [12, 9, 5], 5)
    const problem = problemOf(lab, small, [
      { length: 12, rows: 3 },
      { length: 9, rows: 0 },
      { length: 5, rows: 2 },
    ])
    const { y } = reference(problem)
    const width = small.heads * small.headDim
    const padded = { ...problem, q: new Float64Array(9 * width).fill(Number.NaN) }
    padded.q.set(problem.q)
    const found = await attend(lab, padded, pages)
    lab.close(found.subarray(0, y.length), y, reference(problem).slack)
    if (lab.device.name === 'cpu') sameBits(found.subarray(y.length), new Float64Array(4 * width), 'dead element')
  })
})
