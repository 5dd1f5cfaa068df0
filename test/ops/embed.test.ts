import type { StepInputs, Weight } from '../../binding.d.ts'
import { by8, byRows, conforms, dims, gather, type Lab, rowCounts, sizes } from './conforms.ts'
import { roundBf16, sameBits, type Values } from './numbers.ts'

interface Inputs {
  readonly tokens: readonly number[]
  readonly source?: readonly number[]
  readonly previous?: readonly number[]
}

async function embed(lab: Lab, table: Weight, { tokens, source, previous }: Inputs): Promise<Values> {
  const step = {
    tokens: lab.i32(tokens),
    source: lab.i32(source ?? tokens.map(() => -1)),
    ...(previous ? { previous: lab.i32(previous) } : {}),
    queryStart: lab.i32([0, tokens.length]),
  } as unknown as StepInputs
  return lab.one(op => op.embed(table, step))
}

/** The rows of the table, widened; an id that is not one gives NaN. */
function reference(table: Values, dim: number, ids: readonly number[]): Values {
  const vocab = table.length / dim
  const row = (id: number) => (id >= 0 && id < vocab ? table.subarray(id * dim, (id + 1) * dim) : new Array(dim).fill(Number.NaN))
  return Float64Array.from(ids.flatMap(id => [...row(id)]))
}

/** A table [vocab, dim] as the device has it. */
async function tableOf(lab: Lab, vocab: number, dim: number): Promise<{ weight: Weight; values: Values }> {
  const values = lab.random.normals(vocab * dim)
  return { weight: await lab.weight([vocab, dim], values), values: values.map(roundBf16) }
}

const far = [-1, -2, -(2 ** 31), 31, 32, 2 ** 31 - 1]

conforms('embed', (check, cpuOnly) => {
  for (const [i, dim] of [...dims, 1024].entries()) {
    const rows = rowCounts[i % rowCounts.length]!
    const run = by8(dim) ? check : cpuOnly
    run(`${rows} rows of ${dim}`, async lab => {
      const { weight, values } = await tableOf(lab, 31, dim)
      const tokens = [...lab.random.ints(rows, 0, 31)]
      sameBits(await embed(lab, weight, { tokens }), reference(values, dim, tokens))
    })
  }
  for (const [rows, dim] of sizes)
    check(`${rows} x ${dim}: ids and sources of all kinds`, async lab => {
      const { random } = lab
      const { weight, values } = await tableOf(lab, 31, dim)
      const previous = random.shuffled(Array(31).keys()).concat(31, -1)
      const source = Array.from({ length: rows }, () => random.pick([-1, random.int(0, 33), random.int(33, 99)]))
      const tokens = source.map(() => random.pick([random.int(0, 31), random.int(0, 31), random.pick(far)]))
      const ids = tokens.map((token, i) => (source[i]! < 0 ? token : (previous[source[i]!] ?? -1)))
      const x = await byRows(lab, rows, some =>
        embed(lab, weight, { tokens: some.map(i => tokens[i]!), source: some.map(i => source[i]!), previous }),
      )
      sameBits(x, reference(values, dim, ids))
    })
  check('rejected calls change nothing', async lab => {
    const { weight } = await tableOf(lab, 31, 24)
    const step = { tokens: lab.i32([1, 2]), source: lab.i32([-1]), queryStart: lab.i32([0, 2]) } as unknown as StepInputs
    await lab.rejects('ERR_SHAPE', op => op.embed(weight, step), step.tokens, step.source)
    const floats = { ...step, tokens: lab.f32([1], [1]).tensor } as unknown as StepInputs
    await lab.rejects('ERR_DTYPE', op => op.embed(weight, floats), floats.tokens, step.source)
    await lab.rejects('ERR_ARGUMENT', op => op.embed(weight, { tokens: step.source } as StepInputs), step.source)
  })
  check('an id outside the vocabulary gives a row of NaN and no other', async lab => {
    const { weight, values } = await tableOf(lab, 31, 24)
    const tokens = [0, ...far.flatMap(id => [id, 30]), 5]
    sameBits(await embed(lab, weight, { tokens }), reference(values, 24, tokens))
  })
  check('ids of the step before', async lab => {
    const { weight, values } = await tableOf(lab, 31, 24)
    const inputs = { tokens: [1, 2, 3, 4], source: [-1, 2, 0, -1], previous: [11, 12, 13] }
    sameBits(await embed(lab, weight, inputs), reference(values, 24, [1, 13, 11, 4]))
  })
  check('sources that do not exist, and ids of the step before that are none', async lab => {
    const { weight, values } = await tableOf(lab, 31, 24)
    const source = [3, 2 ** 31 - 1, 0, 1, 2, -5]
    const inputs = { tokens: [1, 1, 1, 1, 1, 1], source, previous: [-1, 31, 7] }
    sameBits(await embed(lab, weight, inputs), reference(values, 24, [-1, -1, -1, -1, 7, 1]))
    const alone = { tokens: [1, 2], source: [0, -1] } // there is no step before
    sameBits(await embed(lab, weight, alone), reference(values, 24, [-1, 2]))
  })
  check('a table of several row blocks', async lab => {
    const parts = [await tableOf(lab, 3, 40), await tableOf(lab, 1, 40), await tableOf(lab, 17, 40)]
    const values = Float64Array.from(parts.flatMap(part => [...part.values]))
    const weight = lab.device.stack(...parts.map(part => part.weight))
    const tokens = [...lab.random.shuffled(Array(21).keys()), 21, -1]
    sameBits(await embed(lab, weight, { tokens }), reference(values, 40, tokens))
  })
  check('any order of rows and number of threads', async lab => {
    const dim = lab.anySize(100)
    const { values } = await tableOf(lab, 31, dim)
    const tokens = [...lab.random.ints(97, 0, 31)]
    await lab.withThreads(async on => {
      const all = await embed(on, await on.weight([31, dim], values), { tokens })
      sameBits(all, gather(values, dim, tokens))
    })
  })
  check('dead rows', async lab => lab.checkDeadRows(24, (_, x) => x))
})
