import { conforms, dims, gather, type Lab, rowCounts } from './conforms.ts'
import { fround, roundBf16, sameBits, sqrt, type Values } from './numbers.ts'

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
conforms('rmsNorm', check => {
  for (const [i, dim] of [...dims, 1024, 4096].entries()) {
    const rows = dim === 4096 ? 7 : rowCounts[i % rowCounts.length]!
    check(`[${rows}, ${dim}]`, async lab => compare(lab, lab.random.normals(rows * dim), dim))
  }
  check('[577, 24]', async lab => compare(lab, lab.random.normals(577 * 24), 24))
  check('eps decides where x is small', async lab => {
    for (const std of [0, 1e-30, 1e-6, 1e-3, 1, 1e6, 1e15]) await compare(lab, lab.random.normals(3 * 40, std), 40, 1e-3)
  })
  check('one large element among small ones', async lab => {
    const x = lab.random.normals(7 * 257, 1e-3)
    for (let row = 0; row < 7; row++) x[row * 257 + lab.random.int(0, 257)] = 1e4
    await compare(lab, x, 257)
  })
  check('NaN and infinity stay in their rows', async lab => {
    const x = lab.random.normals(5 * 40)
    x[45] = Number.NaN
    x[125] = Number.POSITIVE_INFINITY
    await compare(lab, x, 40)
  })
  check('a row has the same bits alone, in any order, with any number of threads', async lab => {
    const [rows, dim] = [54, 100]
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
