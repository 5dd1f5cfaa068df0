import { by8, byRows, conforms, dims, dimsOf8, gather, type Lab, rowCounts, sizes } from './conforms.ts'
import { abs, exp, floor, sameBits, type Values } from './numbers.ts'

/** silu(gate) * up; gate is the first half of each row. */
function reference(gateUp: Values, hidden: number): Values {
  return Float64Array.from({ length: gateUp.length / 2 }, (_, i) => {
    const at = floor(i / hidden) * 2 * hidden + (i % hidden)
    const gate = gateUp[at]!
    return (gate / (1 + exp(-gate))) * gateUp[at + hidden]!
  })
}

/** Where e^-gate is beyond the largest float32 the result is 0 instead of, at most, 104 e^-88.7 up. */
const slack = (gateUp: Values, hidden: number) =>
  reference(gateUp, hidden).map((_, i) => 3e-37 * abs(gateUp[floor(i / hidden) * 2 * hidden + hidden + (i % hidden)]!))

async function compare(lab: Lab, gateUp: ArrayLike<number>, hidden: number): Promise<void> {
  const input = lab.activation([gateUp.length / (2 * hidden), 2 * hidden], gateUp)
  const y = await lab.one(op => op.swiglu(input.tensor))
  lab.close(y, reference(input.values, hidden), slack(input.values, hidden))
}

conforms('swiglu', (check, cpuOnly) => {
  for (const [i, hidden] of [...dims, 2048, 2056].entries()) {
    const rows = hidden > 1000 ? 7 : rowCounts[i % rowCounts.length]!
    const run = by8(hidden) ? check : cpuOnly
    run(`[${rows}, 2 x ${hidden}]`, async lab => compare(lab, lab.random.normals(rows * 2 * hidden, 3), hidden))
  }
  for (const [rows, hidden] of sizes)
    check(`[${rows}, 2 x ${hidden}], rows of every scale`, async lab => {
      const x = lab.round(lab.random.normals(rows * 2 * hidden).map((v, i) => v * 3 ** (floor(i / (2 * hidden)) % 5)))
      const y = await byRows(lab, rows, some => {
        const input = lab.activation([some.length, 2 * hidden], gather(x, 2 * hidden, some)).tensor
        return lab.one(op => op.swiglu(input))
      })
      lab.close(y, reference(x, hidden), slack(x, hidden))
    })
  for (const hidden of dimsOf8)
    check(`2 x ${hidden} whole numbers: gates that sigmoid leaves alone or takes away, exactly`, async lab => {
      const [rows, { random }] = [17, lab]
      const x = Float64Array.from({ length: rows * 2 * hidden }, (_, i) =>
        i % (2 * hidden) < hidden ? random.pick([random.int(32, 128), 0, -256]) : random.int(-15, 16),
      )
      const input = lab.activation([rows, 2 * hidden], x).tensor
      const exact = Float64Array.from({ length: rows * hidden }, (_, i) => {
        const at = floor(i / hidden) * 2 * hidden + (i % hidden)
        return Math.max(x[at]!, 0) * x[at + hidden]!
      })
      const y = await lab.one(op => op.swiglu(input))
      sameBits(
        y.map(v => v + 0),
        lab.round(exact).map(v => v + 0),
      )
    })
  check('rejected calls change nothing', async lab => {
    const odd = lab.activation([7, 25], lab.random.normals(7 * 25)).tensor
    await lab.rejects('ERR_SHAPE', op => op.swiglu(odd), odd)
    const ids = lab.i32([1, 2, 3, 4], [2, 2])
    await lab.rejects('ERR_DTYPE', op => op.swiglu(ids as never), ids)
    const flat = lab.activation([16], lab.random.normals(16)).tensor
    await lab.rejects('ERR_SHAPE', op => op.swiglu(flat), flat)
  })
  check('gates over the whole range of exp', async lab => {
    const gates = Array.from({ length: lab.anySize(4001) }, (_, i) => (i - 2000) / 10)
    await compare(lab, [...gates, ...gates.map(() => lab.random.normal())], gates.length)
  })
  check('zeros, denormals and the largest numbers', async lab => {
    const values = [0, -0, 1e-40, -1e-40, 1e-20, -1e-20, 3e38, -3e38, 88, -88, 1e4, -1e4]
    const gates = Array.from({ length: lab.anySize(values.length) }, (_, i) => values[i % values.length]!)
    await compare(lab, [...gates, ...gates.map(() => 1)], gates.length)
  })
  check('NaN and infinity stay where they are', async lab => {
    const values = lab.random.normals(3 * 80)
    values[7] = Number.NaN // gate
    values[80 + 43] = Number.NaN // up
    values[160 + 9] = Number.POSITIVE_INFINITY
    await compare(lab, values, 40)
  })
  check('a row has the same bits alone, in any order, with any number of threads', async lab => {
    const [rows, hidden] = [54, lab.anySize(100)]
    const x = lab.random.normals(rows * 2 * hidden)
    const order = lab.random.shuffled(Array(rows).keys())
    const swiglu = async (on: Lab, values: Values) => {
      const input = on.activation([values.length / (2 * hidden), 2 * hidden], values).tensor
      return on.one(op => op.swiglu(input))
    }
    const all = await swiglu(lab, x)
    for (const row of [0, 9, 53])
      sameBits(await swiglu(lab, gather(x, 2 * hidden, [row])), gather(all, hidden, [row]), `row ${row}`)
    await lab.withThreads(async on => sameBits(await swiglu(on, gather(x, 2 * hidden, order)), gather(all, hidden, order)))
  })
  check('dead rows', async lab => lab.checkDeadRows(48, (op, _, a) => op.swiglu(a)))
})
