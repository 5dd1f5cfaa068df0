import type { StepInputs } from '../../binding.d.ts'
import { by8, byRows, conforms, dims, gather, type Lab, rowCounts, sizes } from './conforms.ts'
import { fround, sameBits, type Values } from './numbers.ts'

const select = async (lab: Lab, x: Values, dim: number, outputs: ArrayLike<number>): Promise<Values> => {
  const input = lab.f32([x.length / dim, dim], x)
  const step = { outputs: lab.i32([...Array.from(outputs)]) } as unknown as StepInputs
  return lab.one(op => op.selectRows(input.tensor, step))
}

conforms('selectRows', (check, cpuOnly) => {
  for (const [i, dim] of [...dims, 1024].entries()) {
    const rows = rowCounts[i % rowCounts.length]!
    const run = by8(dim) ? check : cpuOnly
    run(`all of ${rows} rows of ${dim}, shuffled`, async lab => {
      const x = lab.random.normals(rows * dim).map(fround)
      const outputs = lab.random.shuffled(Array(rows).keys())
      sameBits(await select(lab, x, dim, outputs), gather(x, dim, outputs))
    })
  }
  for (const [rows, dim] of sizes)
    check(`${rows} of 31 rows of ${dim}, some that do not exist`, async lab => {
      const x = lab.random.normals(31 * dim).map(fround)
      const outputs = Array.from({ length: rows }, () => lab.random.pick([lab.random.int(0, 31), lab.random.int(0, 40)]))
      const y = await byRows(lab, rows, some => select(lab, x, dim, gather(Float64Array.from(outputs), 1, some)))
      const more = new Float64Array(40 * dim).fill(Number.NaN)
      more.set(x)
      sameBits(y, gather(more, dim, outputs))
    })
  check('rejected calls change nothing', async lab => {
    const x = lab.f32([7, 24], lab.random.normals(7 * 24)).tensor
    const step = (outputs: unknown) => ({ outputs }) as StepInputs
    const matrix = lab.i32([0, 1], [1, 2])
    await lab.rejects('ERR_SHAPE', op => op.selectRows(x, step(matrix)), x, matrix)
    await lab.rejects('ERR_DTYPE', op => op.selectRows(x, step(x)), x)
    await lab.rejects('ERR_ARGUMENT', op => op.selectRows(x, step(undefined)), x)
  })
  check('the same row twice, the last row, more rows than there are', async lab => {
    const x = lab.random.normals(7 * 24).map(fround)
    const outputs = [6, 6, 0, 3, 3, 0, 1, 2, 6, 5, 4]
    sameBits(await select(lab, x, 24, outputs), gather(x, 24, outputs))
  })
  check('values come through as bits', async lab => {
    const dim = lab.anySize(3)
    const values = [Number.NaN, Number.NEGATIVE_INFINITY, -0, 2 ** -149, 2 ** -126, 3.4028234663852886e38]
    const x = Float64Array.from({ length: 2 * dim }, (_, i) => values[i % values.length]!)
    sameBits(await select(lab, x, dim, [1, 0]), gather(x, dim, [1, 0]))
  })
  check('a row that does not exist is NaN, and only it', async lab => {
    const x = lab.random.normals(7 * 24).map(fround)
    const nan = new Array(24).fill(Number.NaN)
    const expected = Float64Array.from([...gather(x, 24, [2]), ...nan, ...nan, ...gather(x, 24, [6])])
    sameBits(await select(lab, x, 24, [2, 7, 2 ** 31 - 1, 6]), expected)
  })
  check('from the first -1 on, rows are dead', async lab => {
    const x = lab.random.normals(7 * 24).map(fround)
    for (const outputs of [
      [-1, 1, 2],
      [3, -1, 1],
      [3, 2, -1],
      [-5, 0, 0],
    ]) {
      const live = outputs.findIndex(row => row < 0)
      const y = await select(lab, x, 24, outputs)
      sameBits(y.subarray(0, live * 24), gather(x, 24, outputs.slice(0, live)))
      if (lab.device.name === 'cpu') sameBits(y.subarray(live * 24), new Float64Array((3 - live) * 24), 'dead element')
    }
  })
  check('any number of threads', async lab => {
    const dim = lab.anySize(100)
    const x = lab.random.normals(97 * dim).map(fround)
    const outputs = lab.random.shuffled(Array(97).keys())
    await lab.withThreads(async on => sameBits(await select(on, x, dim, outputs), gather(x, dim, outputs)))
  })
  check('dead rows', async lab => lab.checkDeadRows(24, (op, x, _, step) => op.selectRows(x, step)))
})
