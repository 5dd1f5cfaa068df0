import type { DeviceTensor, Logprobs, Sampling } from '../../binding.d.ts'
import { byRows, conforms, gather, type Lab } from './conforms.ts'
import { abs, exp, floor, fround, log, max, min, nan, sameBits, type Values } from './numbers.ts'
import { closeLogprob } from './sample_reference.ts'

const none = Number.NEGATIVE_INFINITY
const top = 20

type Found = { [K in keyof Logprobs]: Values }

/** Log-probabilities of logits [rows, vocab]; of the given ids, or else of those that were sampled. */
async function logprobs(lab: Lab, logits: Values, sampled: readonly number[], given = sampled.map(() => -1)): Promise<Found> {
  const input = lab.f32([sampled.length, logits.length / sampled.length], logits).tensor
  const ids = [sampled, given].map(each => lab.i32(each))
  return lab.run(op => ({ ...op.logprobs(input, ids[0]!, ids[1]!) }))
}

/** Ids by logit, the lowest first among equals. */
const order = (row: Values): number[] => [...row.keys()].sort((a, b) => row[b]! - row[a]! || a - b)

/** Checks one row: its ids exactly, its numbers to float32 accuracy. */
function checkRow(row: Values, id: number, { chosen, topIds, top: values }: Found, i: number): void {
  const exact = row.map(fround)
  const highest = exact.reduce((a, b) => (nan(a) || nan(b) ? Number.NaN : max(a, b)))
  const finite = abs(highest) < Number.POSITIVE_INFINITY
  const ids = finite ? order(exact).slice(0, top) : []
  const [foundIds, found] = [topIds, values].map(each => each.subarray(i * top, (i + 1) * top))
  sameBits(foundIds!, [...ids, ...new Array(top - ids.length).fill(-1)], `row ${i}: id`)
  const sum = finite ? log(exact.reduce((all, logit) => all + exp(logit - highest), 0)) : 0
  const close = (value: number, of: number) => {
    if (exact[of] === none) sameBits([value], [none], `row ${i}: logprob`)
    else closeLogprob(value, exact[of]! - highest - sum)
  }
  for (const [k, of] of ids.entries()) close(found![k]!, of)
  sameBits(found!.subarray(ids.length), new Array(top - ids.length).fill(finite ? none : Number.NaN), `row ${i}: the rest`)
  if (finite && id >= 0 && id < row.length) close(chosen[i]!, id)
  else sameBits([chosen[i]!], [Number.NaN], `row ${i}: chosen`)
}
async function compare(lab: Lab, logits: Values, ids: readonly number[]): Promise<Found> {
  const vocab = logits.length / ids.length
  const found = await logprobs(lab, logits, ids)
  for (const [i, id] of ids.entries()) checkRow(logits.subarray(i * vocab, (i + 1) * vocab), id, found, i)
  return found
}
/** The three results as one, a row each. */
const flat = ({ chosen, topIds, top: values }: Found): Values =>
  Float64Array.from({ length: chosen.length * (2 * top + 1) }, (_, at) => {
    const [row, i] = [floor(at / (2 * top + 1)), at % (2 * top + 1)]
    return i < top ? topIds[row * top + i]! : i < 2 * top ? values[row * top + i - top]! : chosen[row]!
  })

const samplingOf = (lab: Lab, rows: number): Sampling => ({
  temperature: lab.f32([rows], new Float64Array(rows).fill(1.5)).tensor,
  topP: lab.f32([rows], new Float64Array(rows).fill(1)).tensor,
  minP: lab.f32([rows], new Float64Array(rows)).tensor,
  topK: lab.i32(new Array(rows).fill(0)),
  seed: lab.fill(
    'u32',
    [rows, 2],
    Array.from({ length: 2 * rows }, (_, i) => i),
  ),
  position: lab.i32(new Array(rows).fill(1)),
})

conforms('logprobs', check => {
  for (const vocab of [1, 7, 19, 20, 21, 33, 97, 256, 1000, 4500])
    for (const rows of [1, 2, 7, 17])
      check(`${rows} rows of ${vocab} logits`, async lab => {
        const logits = lab.random.normals(rows * vocab, 3)
        await compare(
          lab,
          logits,
          Array.from({ length: rows }, () => lab.random.int(0, vocab)),
        )
      })
  // 79 slices: more than the lanes of a warp, and than a warp's share.
  check('7 rows of 20011 logits', async lab => {
    await compare(lab, lab.random.normals(7 * 20011, 3), [0, 1, 2, 255, 256, 20010, 77])
  })
  check('the vocabulary of Llama 3', async lab => {
    const logits = lab.random.normals(2 * 128256, 3)
    await compare(lab, logits, [128255, 4711])
  })
  check('given ids before sampled ones; ids outside the vocabulary: NaN', async lab => {
    const vocab = 97
    const row = lab.random.normals(vocab, 3)
    const sampled = [5, 5, -1, 97, 5, 96, -1, 2 ** 31 - 1]
    const given = [-1, 7, 7, -1, 97, -(2 ** 31), -1, 0]
    const asked = [5, 7, 7, 97, 97, 96, -1, 0]
    const logits = gather(row, vocab, new Array(8).fill(0))
    const found = await logprobs(lab, logits, sampled, given)
    for (const [i, id] of asked.entries()) checkRow(row, id, found, i)
  })
  check('the same bits as the log-probabilities of sample, and among themselves', async lab => {
    for (const [rows, vocab] of [
      [1, 97],
      [7, 1000],
      [2, 4500],
      [17, 5003],
    ] as const) {
      const input = lab.f32([rows, vocab], lab.random.normals(rows * vocab, 2)).tensor
      const sampling = samplingOf(lab, rows)
      const given = lab.i32(new Array(rows).fill(-1))
      const found = await lab.run(op => {
        const { ids, logprobs: drawn } = op.sample(input, sampling)
        const { chosen, topIds, top: values } = op.logprobs(input, ids, given)
        return { drawn, chosen, topIds, values }
      })
      sameBits(found.chosen, found.drawn, `${rows} x ${vocab}: logprob`)
      for (let k = 0; k < top; k += 6) {
        const ids = lab.i32(Array.from({ length: rows }, (_, row) => found.topIds[row * top + k]!))
        const { chosen } = await lab.run(op => ({ ...op.logprobs(input, given, ids) }))
        sameBits(
          chosen,
          Array.from({ length: rows }, (_, row) => found.values[row * top + k]!),
          `logprob of the token at ${k}`,
        )
      }
    }
  })

  // Where the most probable tokens may lie: what a warp, a slice of 256 or a lane holds.
  const places: readonly (readonly [string, (i: number) => number])[] = [
    ['side by side', i => 300 + i],
    ['in one slice, 8 apart', i => 512 + 8 * i],
    ['one in every slice', i => 256 * i + 3],
    ['two in every slice', i => 256 * floor(i / 2) + (i % 2 ? 255 : 0)],
    ['at the end', i => 6000 - 30 + i],
    ['in every 16th slice and after it', i => 4096 * (i % 2) + i],
  ]
  for (const [name, place] of places)
    check(`the most probable ones ${name}`, async lab => {
      const row = lab.random.normals(6000)
      for (let i = 0; i < 30; i++) row[place(i) % 6000] = 10 + ((7 * i) % 30)
      await compare(lab, row, [place(3)])
    })
  check('ascending, descending, equal, few values, few that are not -infinity', async lab => {
    const vocab = 1500
    const rows: ((i: number) => number)[] = [
      i => i / 100,
      i => -i / 100,
      () => 2.5,
      i => i % 7,
      i => floor(i / 40) % 9,
      i => (i % 300 === 299 ? i / 300 : none),
      i => (i === 1499 ? -3 : none),
      i => (i % 2 ? 0 : -0),
      i => (i % 100 === 99 ? -0 : -1),
      i => (i === 700 ? 1e38 : -1e38),
      i => (i % 3) * 2 ** -140,
    ]
    const logits = Float64Array.from({ length: rows.length * vocab }, (_, at) => rows[floor(at / vocab)]!(at % vocab))
    await compare(
      lab,
      logits,
      rows.map((_, i) => 100 * i + 99),
    )
    for (const vocab of [3, 24, 300]) {
      const one = rows.map(value => Float64Array.from({ length: vocab }, (_, i) => value(1499 - i)))
      await compare(lab, Float64Array.from(one.flatMap(row => [...row])), new Array(rows.length).fill(min(vocab, 2) - 1))
    }
  })
  check('NaN, infinity or nothing but -infinity: NaN in that row, and the others as if alone', async lab => {
    for (const vocab of [100, 4500]) {
      const rows = 7
      const logits = lab.random.normals(rows * vocab)
      const ids = new Array(rows).fill(50)
      const clean = await compare(lab, logits, ids)
      const row = (i: number) => logits.subarray(i * vocab, (i + 1) * vocab)
      row(0).fill(Number.NaN, vocab - 1)
      row(2).fill(Number.NaN)
      row(3).fill(Number.POSITIVE_INFINITY, 50, 51)
      row(5).fill(none)
      const found = await compare(lab, logits, ids)
      const alone = [1, 4, 6]
      sameBits(gather(flat(found), 2 * top + 1, alone), gather(flat(clean), 2 * top + 1, alone))
    }
  })
  // A row has more blocks the fewer rows there are: on the emulated GPU 4, 2 or 1.
  for (const vocab of [97, 1030, 4500])
    check(`40 rows of ${vocab} logits: the same bits again, in any batch, with any number of threads`, async lab => {
      const logits = lab.random.normals(40 * vocab, 2)
      const run = async (on: Lab, rows: readonly number[]) =>
        flat(
          await logprobs(
            on,
            gather(logits, vocab, rows),
            rows.map(row => row % vocab),
          ),
        )
      const all = await byRows(lab, 40, rows => run(lab, rows))
      for (const count of [1, 2, 3, 5]) {
        const some = lab.random.shuffled(Array(40).keys()).slice(0, count)
        sameBits(await run(lab, some), gather(all, 2 * top + 1, some), `of ${count} rows`)
      }
      const mixed = lab.random.shuffled(Array(40).keys())
      await lab.withThreads(async on => sameBits(await run(on, mixed), gather(all, 2 * top + 1, mixed)))
    })
  check('rejected calls change nothing', async lab => {
    const logits = lab.f32([3, 24], lab.random.normals(72)).tensor
    const ids = lab.i32([1, 2, 3])
    const wrong = (code: string, sampled: DeviceTensor | undefined, given: DeviceTensor) =>
      lab.rejects(code, op => op.logprobs(logits, sampled as never, given as never).top, logits, ids)
    await wrong('ERR_SHAPE', ids, lab.i32([1, 2]))
    await wrong('ERR_SHAPE', lab.i32([1, 2, 3], [3, 1]), ids)
    await wrong('ERR_DTYPE', ids, logits)
    await wrong('ERR_ARGUMENT', undefined, ids)
  })
  check('dead rows', async lab => {
    const ids = lab.i32(new Array(9).fill(3))
    for (const key of ['chosen', 'topIds', 'top'] as const)
      await lab.checkDeadRows(24, (op, x, _, step) => op.logprobs(op.selectRows(x, step), ids, ids)[key])
  })
})
