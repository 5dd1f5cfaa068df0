// Attention where it could break: many sequences, long ones of every shape, full page tables, values that are not finite.
import { attend, compare, type Damage, lengthsOf, mixed, problemOf, smallOn } from './attention_reference.ts'
import { conforms } from './conforms.ts'
import { finite, floor, nan, sameBits, type Values } from './numbers.ts'
import { deal, type HeadShape, headName, type Span } from './paged.ts'

/** What is wrong with sequence 3 of `mixed`, of 33 keys and 7 rows, and how many of its rows cannot be computed. */
const damages: readonly (readonly [name: string, damage: Damage, rows: number])[] = [
  ['a page that is -1', { page: [2, -1] }, 7],
  ['a page beyond the cache', { page: [0, 1 << 20] }, 7],
  ['a page of -2^31', { page: [0, -(2 ** 31)] }, 7],
  ['more keys than the table holds', { length: 2 ** 31 - 1 }, 7],
  ['no key at all', { length: 0 }, 7],
  ['a negative length', { length: -(2 ** 31) }, 7],
  ['fewer keys than rows', { length: 4 }, 3],
]

conforms('attention', check => {
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

  interface Spoilers {
    readonly value: number
    readonly positions: readonly number[]
    readonly columns: number
    readonly headDim?: number
    readonly pageSize?: number
    /** Keys before all rows. */
    readonly before?: number
  }
  const spoilers: readonly Spoilers[] = [
    { value: Number.NaN, positions: [0], columns: 1 },
    { value: Number.NaN, positions: [3], columns: 64 },
    { value: Number.NaN, positions: [62], columns: 64 },
    { value: Number.POSITIVE_INFINITY, positions: [15], columns: 1 },
    { value: Number.POSITIVE_INFINITY, positions: [63], columns: 64 },
    { value: Number.NEGATIVE_INFINITY, positions: [64], columns: 1 },
    { value: Number.NaN, positions: [64], columns: 64 },
    { value: Number.NaN, positions: [96], columns: 1 },
    // Two in one block of 64 keys: some rows see the first alone.
    { value: Number.NaN, positions: [70, 90], columns: 1 },
    { value: Number.NEGATIVE_INFINITY, positions: [5, 6, 40], columns: 64, pageSize: 16 },
    { value: Number.NaN, positions: [37, 60], columns: 128, headDim: 128, pageSize: 16 },
    { value: Number.POSITIVE_INFINITY, positions: [300], columns: 1, pageSize: 16, before: 256 },
    { value: Number.NaN, positions: [257, 290], columns: 128, headDim: 128, pageSize: 16, before: 230 },
  ]
  for (const { value, positions, columns, headDim = 64, pageSize = 5, before = 0 } of spoilers) {
    const where = `value ${positions.join(', ')}${before ? ` after ${before} keys` : ''}, pages of ${pageSize}`
    check(`${value} in ${columns} of ${headDim} columns of ${where}: in rows that see it and no other`, async lab => {
      const shape = { heads: 6, kvHeads: 2, headDim }
      const spans = [
        { length: before + 97, rows: 97 },
        { length: before + 99, rows: 4 },
        { length: before + 97, rows: 1 },
        { length: before + 20, rows: 20 },
      ]
      const width = 6 * headDim
      const problem = problemOf(lab, shape, spans)
      for (const part of [problem.k, problem.v]) part[2]!.set(part[0]!) // sequence 2: the last token of sequence 0, alone
      problem.q.copyWithin(101 * width, 96 * width, 97 * width)
      const lengths = lengthsOf(spans)
      const pages = deal(lab.random, lengths, pageSize)
      const expected = await attend(lab, problem, pages)
      const from = columns === 1 ? 37 : 0
      for (const [s, v] of problem.v.entries())
        for (const position of positions) {
          const at = (position * 2 + 1) * headDim + from // of key/value head 1
          if (position < lengths[s]!) v.fill(value, at, at + columns)
        }
      const y = await attend(lab, problem, pages)
      let row = 0
      for (const { length, rows } of spans)
        for (let i = 0; i < rows; i++, row++)
          for (let h = 3; length - rows + i >= positions[0]! && h < 6; h++) {
            const first = (row * 6 + h) * headDim + from
            const spoiled = y.subarray(first, first + columns)
            // An infinity times a weight that is the sum of two numbers, one of them 0, is NaN.
            if (spoiled.some(nan(value) ? x => !nan(x) : finite)) throw new Error(`row ${row}, head ${h} is ${spoiled}`)
            expected.set(spoiled, first)
          }
      sameBits(y, expected)
      sameBits(y.subarray(101 * width, 102 * width), y.subarray(96 * width, 97 * width), 'alone: element')
    })
  }

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

  const decoded = (...lengths: number[]) => lengths.map(length => ({ length, rows: 1 }))
  const long: readonly (readonly [shape: HeadShape, spans: readonly Span[]])[] = [
    [{ heads: 4, kvHeads: 1, headDim: 128 }, decoded(600, 257, 513, 40, 1100)], // splits in different blocks, merged by one
    [{ heads: 8, kvHeads: 1, headDim: 64 }, [...decoded(300, 700), { length: 300, rows: 20 }]],
    [{ heads: 8, kvHeads: 1, headDim: 128 }, [{ length: 530, rows: 6 }, ...decoded(530)]],
    [
      { heads: 2, kvHeads: 2, headDim: 128 },
      [
        { length: 520, rows: 3 },
        { length: 270, rows: 40 },
      ],
    ], // merged by a tile
    [{ heads: 4, kvHeads: 1, headDim: 64 }, [{ length: 340, rows: 40 }]], // 128 rows of a tile after 300 keys
    [{ heads: 4, kvHeads: 1, headDim: 128 }, [{ length: 620, rows: 40 }]],
  ]
  for (const [shape, spans] of long) {
    const of = spans.map(({ length, rows }) => `${rows} after ${length - rows}`).join(', ')
    check(`more than a split: ${headName(shape)}, rows ${of} keys`, async lab => compare(lab, problemOf(lab, shape, spans), 16))
  }

  // Sequences are dealt 32 at a time. Those around the edges have splits, which lie one after another among the results.
  for (const count of [40, 71])
    check(`${count} sequences in a step`, async lab => {
      const lengths = [...Array(count).keys()].map(s => (s % 32 >= 29 || s % 32 < 2 ? 257 + s : 1 + (s % 7)))
      await compare(lab, problemOf(lab, { heads: 2, kvHeads: 2, headDim: 64 }, decoded(...lengths)), 16)
    })
  check('more splits than results that are kept: some sequences are not divided', async lab => {
    const shape = { heads: 8, kvHeads: 8, headDim: 64 }
    const one = problemOf(lab, shape, decoded(257))
    const spans = decoded(...new Array(17).fill(257)) // 272 of them; 64 a multiprocessor are kept
    const alike = (all: readonly Values[]) => spans.map(() => all[0]!)
    const q = lab.round(lab.random.normals(17 * one.q.length))
    await compare(lab, { ...one, spans, q, k: alike(one.k), v: alike(one.v) }, 16)
  })
  check('more sequences than counters: the last ones are not divided', async lab => {
    const lengths = new Array(4099).fill(0).concat(300, 290)
    lengths[4094] = 310
    const spans = lengths.map(length => ({ length, rows: length > 0 ? 1 : 0 }))
    await compare(lab, problemOf(lab, { heads: 1, kvHeads: 1, headDim: 64 }, spans), 16)
  })

  for (const pageSize of [2, 32, 48, 64, 96, 128])
    check(`pages of ${pageSize}`, async lab => {
      const spans = [{ length: 70, rows: 70 }, ...decoded(130, 300), { length: 200, rows: 9 }]
      await compare(lab, problemOf(lab, { heads: 2, kvHeads: 1, headDim: 64 }, spans), pageSize)
    })
  for (const [pageSize, length] of [
    [16, 64],
    [5, 40],
    [16, 256],
    [1, 63],
    [64, 320],
  ] as const)
    check(`a page table without room, ${length} keys in pages of ${pageSize}; one key more: NaN`, async lab => {
      const spans = [...decoded(length, length - 1, length, length), { length, rows: 3 }]
      const problem = problemOf(lab, { heads: 4, kvHeads: 2, headDim: 64 }, spans)
      await compare(lab, problem, pageSize, 0)
      const pages = deal(lab.random, lengthsOf(spans), pageSize, true, 0)
      const expected = await attend(lab, problem, pages)
      const y = await attend(lab, problem, pages, { seq: 2, length: length + 1 })
      sameBits(y, expected.slice().fill(Number.NaN, 2 * 256, 3 * 256))
    })
  for (const headDim of [64, 128])
    check(`a page is missing in a block that is otherwise seen whole, heads of ${headDim}`, async lab => {
      const spans = [...decoded(130, 600), { length: 140, rows: 3 }, { length: 400, rows: 70 }]
      const problem = problemOf(lab, { heads: 2, kvHeads: 1, headDim }, spans)
      const pages = deal(lab.random, lengthsOf(spans), 16)
      const expected = await attend(lab, problem, pages)
      // Rows `from` to `end` are those of the sequence.
      for (const [seq, from, end, index] of [
        [0, 0, 1, 1],
        [1, 1, 2, 6],
        [2, 2, 5, 1],
        [3, 5, 75, 6],
      ] as const) {
        const y = await attend(lab, problem, pages, { seq, page: [index, -1] })
        const nans = expected.slice().fill(Number.NaN, from * 2 * headDim, end * 2 * headDim)
        sameBits(y, nans, `page ${index} of sequence ${seq}: element`)
      }
    })
})
