import type { DeviceTensor, Recorder } from '../../binding.d.ts'
import { by8, conforms, gather, type Lab } from './conforms.ts'
import { abs, closeF32, floor, roundBf16, sameBits, sqrt, u32, type Values } from './numbers.ts'

/** x W^T in float64, and the sum of |x| |W| that bounds its rounding errors. */
function reference(x: Values, weight: Values, cols: number): { y: Values; bound: Values } {
  const [rows, out] = [x.length / cols, weight.length / cols]
  const y = new Float64Array(rows * out)
  const bound = new Float64Array(rows * out)
  for (let t = 0; t < rows; t++)
    for (let n = 0; n < out; n++)
      for (let k = 0; k < cols; k++) {
        const product = x[t * cols + k]! * weight[n * cols + k]!
        y[t * out + n] = y[t * out + n]! + product
        bound[t * out + n] = bound[t * out + n]! + abs(product)
      }
  return { y, bound }
}

/** A sum of n products has an error of at most n u sum |x| |w|, in any order; where terms cancel that is more than an ulp. */
const slack = (bound: Values, cols: number) => bound.map(b => b * cols * u32)

type Shape = readonly [rows: number, cols: number, out: number]

async function multiply(lab: Lab, x: Values, w: Values, cols: number): Promise<Values> {
  const input = lab.activation([x.length / cols, cols], x).tensor
  const weight = await lab.weight([w.length / cols, cols], w)
  return lab.one(op => op.linear(input, weight))
}

async function compare(lab: Lab, [rows, cols, out]: Shape): Promise<void> {
  const x = lab.activation([rows, cols], lab.random.normals(rows * cols))
  const w = lab.random.normals(out * cols).map(roundBf16)
  const add = lab.f32([rows, out], lab.random.normals(rows * out))
  const weight = await lab.weight([out, cols], w)
  const found = await lab.run(op => ({
    y: op.linear(x.tensor, weight),
    f32: op.linear(x.tensor, weight, { as: 'f32' }),
    added: op.linear(x.tensor, weight, { add: add.tensor }) as DeviceTensor,
  }))
  const { y, bound } = reference(x.values, w, cols)
  const limit = lab.mode === 'f32' ? 1e-12 : 1e-7
  lab.close(found.y, y, slack(bound, cols))
  closeF32(found.f32, y, limit)
  closeF32(
    found.added,
    y.map((v, i) => v + add.values[i]!),
    limit,
  )
}

// The CPU: segments of K are 1024 or 2048 long, tiles 3 x 4 or 3 x 8, 12 rows are "few", 96 or 144 a chunk.
const shapes: readonly Shape[] = [
  [1, 1, 1],
  [1, 257, 40],
  [7, 8, 3],
  [7, 2056, 9],
  [12, 24, 100],
  [13, 100, 24],
  [17, 40, 257],
  [54, 257, 33],
  [97, 24, 40],
  [97, 1032, 8],
  [145, 33, 31],
  [577, 24, 8],
  ...gpuShapes(),
]

/** Multiples of 8, around every size of tile of tokens (8, 16, ... 256), of rows (64, 128) and of K (64). */
function gpuShapes(): Shape[] {
  const weights = [
    [8, 8],
    [24, 104],
    [64, 64],
    [72, 136],
    [136, 40],
    [264, 128],
    [520, 24],
    [1032, 72],
  ] as const
  const rows = [1, 3, 7, 8, 9, 16, 17, 32, 33, 54, 64, 65, 97, 128, 129, 256, 257, 300, 577]
  return rows.flatMap((count, i) =>
    weights.flatMap(([cols, out], j): Shape[] => ((i + j) % 3 === 0 && count * cols * out < 3e6 ? [[count, cols, out]] : [])),
  )
}

conforms('linear', (check, cpuOnly) => {
  for (const [rows, cols, out] of shapes) {
    const run = by8(cols) ? check : cpuOnly
    run(`${rows} x ${cols} -> ${out}`, async lab => compare(lab, [rows, cols, out]))
    run(`${rows} x ${cols} -> ${out}, whole numbers: exact`, async lab => {
      const x = lab.random.ints(rows * cols, -4, 5)
      const w = lab.random.ints(out * cols, -4, 5)
      const add = lab.f32([rows, out], lab.random.ints(rows * out, -1000, 1001))
      const input = lab.activation([rows, cols], x).tensor
      const weight = await lab.weight([out, cols], w)
      const found = await lab.run(op => ({
        y: op.linear(input, weight),
        added: op.linear(input, weight, { add: add.tensor }) as DeviceTensor,
      }))
      const { y } = reference(x, w, cols)
      sameBits(
        found.added,
        y.map((v, i) => v + add.values[i]!),
        'added',
      )
      sameBits(
        found.y,
        lab.round(y).map(v => v + 0),
      )
    })
  }
  check('a weight of several row blocks has the bits of one', async lab => {
    const cols = lab.anySize(100)
    const w = lab.random.normals(60 * cols)
    const cuts = [0, 3, 4, 21, 29, 60]
    const parts = await Promise.all(
      cuts.slice(1).map((end, i) => lab.weight([end - cuts[i]!, cols], w.subarray(cuts[i]! * cols, end * cols))),
    )
    const whole = await lab.weight([60, cols], w)
    for (const rows of [1, 7, 17]) {
      const x = lab.activation([rows, cols], lab.random.normals(rows * cols)).tensor
      const both = await lab.run(op => ({ a: op.linear(x, whole), b: op.linear(x, lab.device.stack(...parts)) }))
      sameBits(both.b, both.a, `${rows} rows: element`)
      const nested = lab.device.stack(lab.device.stack(parts[0]!, parts[1]!), lab.device.stack(...parts.slice(2)))
      sameBits(await lab.one(op => op.linear(x, nested)), both.a, 'nested: element')
    }
  })
  check('random weights: a stack is its parts, values are normal, a seed repeats them', async lab => {
    const cols = 64
    const unit = Float64Array.from({ length: cols * cols }, (_, i) => (i % (cols + 1) === 0 ? 1 : 0))
    const identity = lab.activation([cols, cols], unit).tensor
    const read = (op: Recorder, seed: number, rows: number) =>
      op.linear(identity, lab.device.random([rows, cols], seed, 0.5), { as: 'f32' })
    const { a, b, again, stacked } = await lab.run(op => ({
      a: read(op, 1, 100),
      b: read(op, 2, 57),
      again: read(op, 1, 100),
      stacked: op.linear(
        identity,
        lab.device.stack(lab.device.random([100, cols], 1, 0.5), lab.device.random([57, cols], 2, 0.5)),
        {
          as: 'f32',
        },
      ),
    }))
    sameBits(again, a)
    const joined = Float64Array.from({ length: cols * 157 }, (_, i) => {
      const [k, n] = [floor(i / 157), i % 157]
      return n < 100 ? a[k * 100 + n]! : b[k * 57 + n - 100]!
    })
    sameBits(stacked, joined)
    const mean = a.reduce((s, v) => s + v, 0) / a.length
    const std = sqrt(a.reduce((s, v) => s + (v - mean) ** 2, 0) / a.length)
    // 6400 samples: the mean within 5 x 0.5 / 80, the deviation within 5 x 0.5 / 113
    if (abs(mean) > 0.032 || abs(std - 0.5) > 0.023) throw new Error(`mean ${mean}, deviation ${std}`)
  })
  check('NaN and infinity touch their row or their column', async lab => {
    for (const rows of [5, 17]) {
      const [cols, out] = [40, 24]
      const x = lab.random.normals(rows * cols)
      const w = lab.random.normals(out * cols)
      const clean = await multiply(lab, x, w, cols)
      x[2 * cols + 39] = Number.NaN
      w[7 * cols] = Number.NaN
      const y = await multiply(lab, x, w, cols)
      const hit = (i: number) => floor(i / out) === 2 || i % out === 7
      sameBits(
        y,
        clean.map((v, i) => (hit(i) ? Number.NaN : v)),
      )
    }
  })
  check('a row has the same bits alone, among others and with any number of threads', async lab => {
    for (const [cols, out] of [
      [1032, 24],
      [lab.anySize(257), 33],
      [40, 100],
    ] as const) {
      const rows = 150
      const x = lab.random.normals(rows * cols)
      const w = lab.random.normals(out * cols)
      const all = await multiply(lab, x, w, cols)
      for (const count of [1, 2, 3, 11, 12, 13, 54, 97, 149]) {
        const some = lab.random.shuffled(Array(rows).keys()).slice(0, count)
        sameBits(await multiply(lab, gather(x, cols, some), w, cols), gather(all, out, some), `${count} rows: element`)
      }
      await lab.withThreads(async on => {
        for (const count of [1, 17, 150])
          sameBits(await multiply(on, x.subarray(0, count * cols), w, cols), all.subarray(0, count * out))
      })
    }
  })
  check('a row has the same bits among few and among many', async lab => {
    const [rows, cols, out] = [600, 520, 136]
    const x = lab.random.normals(rows * cols)
    const w = lab.random.normals(out * cols)
    const all = await multiply(lab, x, w, cols)
    for (const count of [1, 9, 30, 65, 200, 256, 257, 385]) {
      const some = lab.random.shuffled(Array(rows).keys()).slice(0, count)
      sameBits(await multiply(lab, gather(x, cols, some), w, cols), gather(all, out, some), `${count} rows: element`)
    }
  })
  check('a column has the same bits whatever its neighbours are', async lab => {
    const [rows, cols, out] = [17, lab.anySize(257), 60]
    const x = lab.random.normals(rows * cols)
    const w = lab.random.normals(out * cols)
    const all = await multiply(lab, x, w, cols)
    const column = (y: Values, width: number, n: number) => Float64Array.from({ length: rows }, (_, t) => y[t * width + n]!)
    for (const [first, end] of [
      [0, 1],
      [3, 10],
      [31, 60],
    ] as const) {
      const part = await multiply(lab, x, w.subarray(first * cols, end * cols), cols)
      for (let n = first; n < end; n++) sameBits(column(part, end - first, n - first), column(all, out, n), `column ${n}`)
    }
  })
  check('the same bits on every repetition, on several threads', async lab => {
    const [rows, cols] = [54, lab.anySize(257)]
    const x = lab.random.normals(rows * cols)
    const w = lab.random.normals(40 * cols)
    const first = await multiply(lab, x, w, cols)
    await lab.withThreads(async on => {
      for (let i = 0; i < 5; i++) sameBits(await multiply(on, x, w, cols), first, `run ${i}: element`)
    })
  })
  // Where K is shared out among blocks, they finish in any order.
  check('the same bits on every repetition, few rows and a long K', async lab => {
    const cols = 1024
    const x = lab.activation([3, cols], lab.random.normals(3 * cols)).tensor
    const weights = await Promise.all([72, 24].map(rows => lab.weight([rows, cols], lab.random.normals(rows * cols))))
    const all = () => lab.run(op => Object.fromEntries(weights.map((w, i) => [i, op.linear(x, w, { as: 'f32' })])))
    const first = await all()
    for (let i = 0; i < (lab.device.name === 'simt' ? 60 : 5); i++)
      for (const [k, y] of Object.entries(await all())) sameBits(y, first[k]!, `run ${i}, weight ${k}: element`)
  })
  check('dead rows', async lab => {
    const weight = await lab.weight([33, 24], lab.random.normals(33 * 24))
    await lab.checkDeadRows(24, (op, _, a) => op.linear(a, weight))
    const square = await lab.weight([24, 24], lab.random.normals(24 * 24))
    await lab.checkDeadRows(24, (op, x, a) => op.linear(a, square, { add: x }))
  })
})
