import { by8, byRows, conforms, dims, dimsOf8, gather, type Lab, rowCounts, sizes } from './conforms.ts'
import { floor, fround, roundBf16, sameBits, sqrt, type Values } from './numbers.ts'

/** y = x / sqrt(mean(x^2) + eps) * weight, row by row. */
function reference(x: Values, weight: Values, eps: number): Values {
  const dim = weight.length
  const y = new Float64Array(x.length)
  for (let row = 0; row < x.length; row += dim) {
    const mean = x.subarray(row, row + dim).reduce((sum, v) => sum + v * v, 0) / dim
    for (let d = 0; d < dim; d++) y[row + d] = (x[row + d]! / sqrt(mean + fround(eps))) * weight[d]!
  }
  return y
}

async function compare(lab: Lab, x: ArrayLike<number>, dim: number, eps = 1e-5): Promise<void> {
  const input = lab.f32([x.length / dim, dim], x)
  const w = lab.random.normals(dim)
  const weight = await lab.weight([dim], w)
  const y = await lab.one(op => op.rmsNorm(input.tensor, weight, eps))
  lab.close(y, reference(input.values, w.map(roundBf16), eps))
}
conforms('rmsNorm', (check, cpuOnly) => {
  for (const [i, dim] of [...dims, 1024, 4096].entries()) {
    const rows = dim === 4096 ? 7 : rowCounts[i % rowCounts.length]!
    const run = by8(dim) ? check : cpuOnly
    run(`[${rows}, ${dim}]`, async lab => compare(lab, lab.random.normals(rows * dim), dim))
  }
  for (const [rows, dim] of sizes)
    check(`[${rows}, ${dim}], rows of every scale`, async lab => {
      const x = lab.random.normals(rows * dim).map((v, i) => fround(v * 10 ** ((floor(i / dim) % 7) - 3)))
      const w = lab.random.normals(dim)
      const weight = await lab.weight([dim], w)
      const y = await byRows(lab, rows, some => {
        const input = lab.f32([some.length, dim], gather(x, dim, some)).tensor
        return lab.one(op => op.rmsNorm(input, weight, 1e-5))
      })
      lab.close(y, reference(x, w.map(roundBf16), 1e-5))
    })
  for (const dim of dimsOf8)
    check(`${dim} equal powers of two: the weights, exactly`, async lab => {
      const rows = 17
      const sign = lab.random.ints(rows * dim, 0, 2).map(v => 2 * v - 1)
      const x = sign.map((s, i) => s * 2 ** (floor(i / dim) - 8))
      const w = lab.random.ints(dim, -200, 201)
      const weight = await lab.weight([dim], w)
      const input = lab.f32([rows, dim], x).tensor
      const y = await lab.one(op => op.rmsNorm(input, weight, 1e-30))
      sameBits(
        y,
        sign.map((s, i) => s * w[i % dim]!),
      )
    })
  check('rejected calls change nothing', async lab => {
    const x = lab.f32([7, 24], lab.random.normals(7 * 24)).tensor
    const [long, matrix] = [await lab.weight([32], lab.random.normals(32)), await lab.weight([1, 24], lab.random.normals(24))]
    await lab.rejects('ERR_SHAPE', op => op.rmsNorm(x, long, 1e-5), x)
    await lab.rejects('ERR_SHAPE', op => op.rmsNorm(x, matrix, 1e-5), x)
    const ids = lab.i32([1, 2, 3], [1, 3])
    await lab.rejects('ERR_DTYPE', op => op.rmsNorm(ids as never, long, 1e-5), ids)
  })
  check('eps decides where x is small', async lab => {
    for (const std of [0, 1e-30, 1e-6, 1e-3, 1, 1e6, 1e15]) await compare(lab, lab.random.normals(3 * 40, std), 40, 1e-3)
  })
  check('one large element among small ones', async lab => {
    const dim = lab.anySize(257)
    const x = lab.random.normals(7 * dim, 1e-3)
    for (let row = 0; row < 7; row++) x[row * dim + lab.random.int(0, dim)] = 1e4
    await compare(lab, x, dim)
  })
  check('NaN and infinity stay in their rows', async lab => {
    const x = lab.random.normals(5 * 40)
    x[45] = Number.NaN
    x[125] = Number.POSITIVE_INFINITY
    await compare(lab, x, 40)
  })
  check('a row has the same bits alone, in any order, with any number of threads', async lab => {
    const [rows, dim] = [54, lab.anySize(100)]
    const x = lab.random.normals(rows * dim)
    const w = lab.random.normals(dim)
    const order = lab.random.shuffled(Array(rows).keys())
    const norm = async (on: Lab, values: Values) => {
      const weight = await on.weight([dim], w)
      const input = on.f32([values.length / dim, dim], values).tensor
      return on.one(op => op.rmsNorm(input, weight, 1e-5))
    }
    const all = await norm(lab, x)
    for (const row of [0, 7, 53]) sameBits(await norm(lab, gather(x, dim, [row])), gather(all, dim, [row]), `row ${row}`)
    await lab.withThreads(async on => sameBits(await norm(on, gather(x, dim, order)), gather(all, dim, order)))
  })
  check('dead rows', async lab => {
    const weight = await lab.weight([24], lab.random.normals(24))
    await lab.checkDeadRows(24, (op, x) => op.rmsNorm(x, weight, 1e-5))
  })
})
