import type { DeviceTensor } from '../../binding.d.ts'
import { attend, compare, lengthsOf, mixed, problemOf, reference, smallOn } from './attention_reference.ts'
import { conforms, rowCounts } from './conforms.ts'
import { floor, min, sameBits, type Values } from './numbers.ts'
import { cacheOf, deal, headCounts, headName, headShapes, type Span, stepOf, upload } from './paged.ts'

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
  // Blocks of keys are 64 long, splits 256, tiles 64 rows (128 in a prefill on sm_90a), 16 a warp: here 4 of them are one token.
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
