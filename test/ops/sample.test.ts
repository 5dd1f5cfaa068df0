import { expect, test } from '@jest/globals'
import type { DeviceTensor, Sampled, Sampling } from '../../binding.d.ts'
import { conforms, dims, dimsOf8, gather, type Lab } from './conforms.ts'
import { fround, log, type Random, sameBits, type Values } from './numbers.ts'
import { chiSquareTail, closeLogprob, draw, kept, logprob, philox, probabilities, type Settings } from './sample_reference.ts'

function samplingOf(lab: Lab, rows: readonly Settings[]): Omit<Sampling, 'sampled'> {
  const f32 = (pick: (row: Settings) => number) => lab.f32([rows.length], rows.map(pick)).tensor
  return {
    temperature: f32(row => row.temperature ?? 0),
    topP: f32(row => row.topP ?? 1),
    minP: f32(row => row.minP ?? 0),
    topK: lab.i32(rows.map(row => row.topK ?? 0)),
    seed: lab.fill(
      'u32',
      [rows.length, 2],
      rows.flatMap(row => row.seed ?? [0, 0]),
    ),
    position: lab.i32(rows.map(row => row.position ?? 0)),
  }
}

/** Samples logits [rows.length, vocab]. */
async function sample(lab: Lab, logits: Values, rows: readonly Settings[], sampled?: DeviceTensor<'i32'>) {
  const input = lab.f32([rows.length, logits.length / rows.length], logits)
  const sampling = { ...samplingOf(lab, rows), ...(sampled ? { sampled } : {}) }
  return lab.run(op => ({ ...(op.sample(input.tensor, sampling) as Sampled) }))
}

/** Checks ids, log-probabilities and status of every row against the reference. */
async function compare(lab: Lab, logits: Values, rows: readonly Settings[]): Promise<void> {
  const exact = logits.map(fround)
  const vocab = logits.length / rows.length
  const row = (i: number) => exact.subarray(i * vocab, (i + 1) * vocab)
  const { ids, logprobs, status } = await sample(lab, logits, rows)
  sameBits(status, new Float64Array(rows.length), 'status')
  sameBits(
    ids,
    rows.map((settings, i) => draw(row(i), settings)),
    'id of row',
  )
  for (const [i, found] of logprobs.entries()) closeLogprob(found, logprob(row(i), ids[i]!))
}

/** The same row of logits, many times. */
const repeat = (row: ArrayLike<number>, times: number) => gather(Float64Array.from(row), row.length, new Array(times).fill(0))
const seeds = (count: number, settings: Settings): Settings[] =>
  Array.from({ length: count }, (_, i) => ({ ...settings, seed: [i, 7] as const, position: 3 * i }))
const word = (random: Random): readonly [number, number] => [random.u32(), random.u32()]

test('Philox4x32-10: the known answers of Random123', () => {
  const hex = (words: number[]) => words.map(w => w.toString(16).padStart(8, '0')).join(' ')
  const all = 0xffffffff
  expect(hex(philox([0, 0, 0, 0], [0, 0]))).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8')
  expect(hex(philox([all, all, all, all], [all, all]))).toBe('408f276d 41c83b0e a20bc7c6 6d5451fd')
  const pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344]
  expect(hex(philox(pi, [0xa4093822, 0x299f31d0]))).toBe('d16cfe09 94fdcceb 5001e420 24126ea1')
})

conforms('sample', check => {
  for (const vocab of [...dims, 1025])
    check(`greedy, ${vocab} logits`, async lab => {
      const logits = lab.random.normals(7 * vocab, 3)
      await compare(lab, logits, new Array(7).fill({ temperature: 0 }))
    })
  check('greedy: the lowest id among equals', async lab => {
    for (const vocab of [3, 24, 257]) {
      const logits = new Float64Array(vocab * 4).fill(-1)
      for (const at of [vocab - 1, vocab + 1, vocab + 2, 3 * vocab - 2, 3 * vocab - 1]) logits[at] = 5
      const { ids } = await sample(lab, logits, new Array(4).fill({}))
      sameBits(ids, [vocab - 1, 1, vocab - 2, 0], 'id of row')
    }
    const { ids } = await sample(lab, Float64Array.of(-1, -0, 0, 0), [{}])
    sameBits(ids, [1], '-0 equals 0: id of row')
  })

  const settings: readonly Settings[] = [
    { temperature: 1 },
    { temperature: 0.7, topK: 5 },
    { temperature: 1.3, topP: 0.9 },
    { temperature: 1, topP: 0.3, topK: 20 },
    { temperature: 0.8, minP: 0.1 },
    { temperature: 2, topK: 30, topP: 0.8, minP: 0.02 },
    { temperature: 1, topK: 1 },
    { temperature: 5, topP: 0.999 },
  ]
  for (const [i, vocab] of [...dimsOf8, 1032].entries())
    for (const [j, rows] of [1, 2, 7, 17].entries())
      check(`${rows} rows of ${vocab} logits, settings of all kinds`, async lab => {
        const { random } = lab
        const each = Array.from({ length: rows }, (_, row) => {
          const chosen = settings[(i + 3 * j + row) % settings.length]!
          return { ...chosen, seed: word(random), position: random.int(0, 1e6) }
        })
        const logits = random.normals(rows * vocab, 3)
        await compare(lab, logits, each)
        const [first, again] = [await sample(lab, logits, each), await sample(lab, logits, each)]
        for (const key of ['ids', 'logprobs'] as const) sameBits(again[key], first[key], `${key} again: row`)
      })
  // A row has more blocks the fewer rows there are: on the emulated GPU 4, 2 or 1.
  for (const vocab of [257, 1030, 2048, 4500])
    for (const [kind, kinds] of [
      ['greedy', [{}]],
      ['temperature alone', [{ temperature: 1 }, { temperature: 0.4 }]],
      ['settings of all kinds', settings],
    ] as const)
      check(`1 to 40 rows of ${vocab} logits, ${kind}: the same bits with any number of blocks`, async lab => {
        const { random } = lab
        const each = Array.from({ length: 40 }, (_, row) => ({
          ...kinds[row % kinds.length]!,
          seed: word(random),
          position: row,
        }))
        const logits = random.normals(40 * vocab, 2).map(fround)
        const all = await sample(lab, logits, each)
        for (const row of [0, 1, 39]) {
          const one = logits.subarray(row * vocab, (row + 1) * vocab)
          sameBits([all.ids[row]!], [draw(one, each[row]!)], `id of row ${row}`)
          closeLogprob(all.logprobs[row]!, logprob(one, all.ids[row]!))
        }
        for (const count of [1, 2, 3, 5, 17]) {
          const order = random.shuffled(Array(40).keys()).slice(0, count)
          const some = await sample(
            lab,
            gather(logits, vocab, order),
            order.map(row => each[row]!),
          )
          for (const key of ['ids', 'logprobs', 'status'] as const)
            sameBits(some[key], gather(all[key], 1, order), `${key} of ${count} rows`)
        }
      })
  for (const vocab of [40, 1032])
    check(`${vocab} equal logits among smaller ones: every one may be drawn, the first is greedy`, async lab => {
      const row = new Float64Array(vocab).fill(Number.NEGATIVE_INFINITY)
      const equal = [3, vocab - 9, vocab - 2, vocab - 1]
      for (const id of equal) row[id] = 7
      const { ids, logprobs } = await sample(lab, repeat(row, 64), [{}, ...seeds(63, { temperature: 1, topP: 0.99 })])
      sameBits([ids[0]!, ...[...new Set(ids)].sort((a, b) => a - b)], [3, ...equal])
      for (const found of logprobs) closeLogprob(found, -log(4))
    })
  check('rejected calls change nothing', async lab => {
    const logits = lab.f32([7, 24], lab.random.normals(7 * 24)).tensor
    const [fits, few] = [samplingOf(lab, new Array(7).fill({})), samplingOf(lab, [{}])]
    const sampled = lab.i32([5, 5, 5])
    await lab.rejects('ERR_SHAPE', op => op.sample(logits, few).ids, logits)
    await lab.rejects('ERR_SHAPE', op => op.sample(logits, { ...fits, seed: lab.fill('u32', [7, 1], new Array(7)) }).ids, logits)
    await lab.rejects('ERR_SHAPE', op => op.sample(logits, { ...fits, sampled }).ids, logits, sampled)
    await lab.rejects('ERR_DTYPE', op => op.sample(logits, { ...fits, topK: fits.topP as never }).ids, logits)
  })
  for (const [i, each] of settings.entries())
    check(`draws equal the reference: ${JSON.stringify(each)}`, async lab => {
      const vocab = [257, 40, 100, 1025][i % 4]!
      const rows = Array.from({ length: 54 }, () => ({ ...each, seed: word(lab.random), position: lab.random.int(0, 1e6) }))
      await compare(lab, lab.random.normals(54 * vocab, 2.5), rows)
    })
  check('draws equal the reference with every setting different in every row', async lab => {
    const { random } = lab
    const rows = Array.from({ length: 97 }, () => ({
      temperature: random.pick([0, 0.1, 0.6, 1, 1.5]),
      topP: random.pick([1, 0.95, 0.5, 0.05]),
      minP: random.pick([0, 0, 0.05, 0.5]),
      topK: random.pick([0, 0, 1, 2, 17, 1000]),
      seed: word(random),
      position: random.pick([0, 1, 8191, 2 ** 31 - 1, -1]),
    }))
    await compare(lab, random.normals(97 * 100, 3), rows)
  })

  const support: readonly (readonly [string, Settings, number])[] = [
    ['topK', { temperature: 3, topK: 4 }, 4],
    ['topP', { temperature: 3, topP: 0.5 }, 0],
    ['minP', { temperature: 3, minP: 0.4 }, 0],
    ['all of them', { temperature: 3, topK: 9, topP: 0.7, minP: 0.2 }, 0],
  ]
  for (const [name, each, size] of support)
    check(`${name}: all of the kept set is drawn, and nothing else, with the right frequencies`, async lab => {
      const row = lab.random.normals(24, 4).map(fround)
      const set = kept(row, each)
      if (size && set.size !== size) throw new Error(`the reference keeps ${set.size}`)
      const count = 4000
      const { ids } = await sample(lab, repeat(row, count), seeds(count, each))
      const p = probabilities(
        Float64Array.from([...set], id => row[id]!),
        each.temperature,
      )
      const drawn = new Map<number, number>()
      for (const id of ids) drawn.set(id, (drawn.get(id) ?? 0) + 1)
      for (const id of drawn.keys()) if (!set.has(id)) throw new Error(`${id} was drawn, but is not in the kept set ${[...set]}`)
      const chi = [...set].reduce((sum, id, i) => sum + ((drawn.get(id) ?? 0) - count * p[i]!) ** 2 / (count * p[i]!), 0)
      const tail = set.size > 1 ? chiSquareTail(chi, set.size - 1) : 1
      if (!(tail > 1e-4)) throw new Error(`chi-square is ${chi} for ${set.size} ids: p = ${tail}`)
    })
  check('ties with the last token kept are kept', async lab => {
    const row = [1, 4, 2, 4, 2, 2, -3, 0]
    for (const each of [
      { temperature: 1e6, topK: 3 },
      { temperature: 1e6, topP: 0.3 },
    ]) {
      const { ids } = await sample(lab, repeat(row, 300), seeds(300, each))
      sameBits([...new Set(ids)].sort(), [1, 2, 3, 4, 5], 'id')
    }
    const zeros = await sample(lab, repeat([-0, 0, -1, 0, -0], 200), seeds(200, { temperature: 1, topK: 1 }))
    sameBits([...new Set(zeros.ids)].sort(), [0, 1, 3, 4], '-0 equals 0: id')
  })

  const extremes: readonly (readonly [string, Settings])[] = [
    ['topK of the vocabulary', { temperature: 1, topK: 40 }],
    ['topK beyond it', { temperature: 1, topK: 2 ** 30 }],
    ['negative topK: off', { temperature: 1, topK: -1 }],
    ['tiny topP: the best', { temperature: 1, topP: 1e-30 }],
    ['topP of 0: the best', { temperature: 1, topP: 0 }],
    ['topP just below 1', { temperature: 1, topP: 1 - 2 ** -24 }],
    ['topP above 1: off', { temperature: 1, topP: 2 }],
    ['minP of 1: the best', { temperature: 1, minP: 1 }],
    ['minP above 1: the best', { temperature: 1, minP: 3 }],
    ['tiny minP', { temperature: 1, minP: 1e-38 }],
    ['tiny temperature: the best', { temperature: 1e-30 }],
    ['denormal temperature: the best', { temperature: 1e-44, topP: 0.5, minP: 0.5, topK: 7 }],
    ['huge temperature: uniform', { temperature: 1e30 }],
    ['huge temperature with topP', { temperature: 1e30, topP: 0.5 }],
  ]
  for (const [name, each] of extremes)
    check(name, async lab => {
      const row = lab.random.normals(40, 5)
      await compare(lab, repeat(row, 50), seeds(50, each))
    })
  check('special rows: one-hot, all equal, -infinity, far from zero', async lab => {
    const row = (value: (i: number) => number) => Float64Array.from({ length: 40 }, (_, i) => value(i))
    const none = Number.NEGATIVE_INFINITY
    const special = [
      row(i => (i === 17 ? 1e4 : -1e4)),
      row(i => (i === 39 ? 3e38 : -3e38)),
      row(() => 2.5),
      row(i => (i % 3 ? none : i / 8)),
      row(i => (i === 39 ? 0 : none)),
      row(i => 1e5 + i / 8),
      row(i => -1e5 - i / 8),
      row(i => i * 2 ** -140),
    ]
    for (const each of [{}, { temperature: 1 }, { temperature: 0.5, topK: 30, topP: 0.9 }, { temperature: 2, minP: 0.3 }])
      for (const logits of special) await compare(lab, repeat(logits, 7), seeds(7, each))
  })
  check('NaN, infinity or nothing but -infinity: status 1 in that row, and the others as if alone', async lab => {
    const [rows, vocab] = [17, 100]
    const logits = lab.random.normals(rows * vocab)
    const each = seeds(rows, { temperature: 1, topK: 50, topP: 0.9 })
    const clean = await sample(lab, logits, each)
    const bad = new Map<number, (row: Values) => void>([
      [0, row => void row.fill(Number.NaN, 99)],
      [3, row => void row.fill(Number.NaN)],
      [8, row => void row.fill(Number.POSITIVE_INFINITY, 50, 51)],
      [9, row => void row.fill(Number.NEGATIVE_INFINITY)],
      [16, row => void row.fill(Number.NaN, 0, 1).fill(Number.POSITIVE_INFINITY, 1, 2)],
    ])
    for (const [i, spoil] of bad) spoil(logits.subarray(i * vocab, (i + 1) * vocab))
    for (const settings of [each, each.map(() => ({}))]) {
      const found = await sample(lab, logits, settings)
      const expected =
        settings === each
          ? clean
          : await sample(
              lab,
              logits.map((v, i) => (bad.has(Math.floor(i / vocab)) ? 0 : v)),
              settings,
            )
      const but = (values: Values, value: number) => values.map((v, i) => (bad.has(i) ? value : v))
      sameBits(found.status, but(new Float64Array(rows), 1), 'status of row')
      sameBits(found.ids, but(expected.ids, 0), 'id of row')
      sameBits(found.logprobs, but(expected.logprobs, Number.NaN), 'logprob of row')
    }
  })
  check('the ids are also written to `sampled`, which may be longer', async lab => {
    const logits = lab.random.normals(7 * 24)
    const sampled = lab.i32(new Array(10).fill(77))
    const { ids } = await sample(lab, logits, seeds(7, { temperature: 1 }), sampled)
    sameBits(await lab.values(sampled), [...ids, 77, 77, 77])
  })
  check(
    'a row gives the same id wherever it is, with any number of threads, and another for each seed and position',
    async lab => {
      const [rows, vocab] = [54, 257]
      const logits = lab.random.normals(rows * vocab, 0.1)
      const each = Array.from({ length: rows }, () => ({
        temperature: 1,
        topP: 0.95,
        seed: word(lab.random),
        position: lab.random.int(0, 9999),
      }))
      const all = await sample(lab, logits, each)
      const same = async (on: Lab, order: readonly number[]) => {
        const some = await sample(
          on,
          gather(logits, vocab, order),
          order.map(row => each[row]!),
        )
        for (const key of ['ids', 'logprobs'] as const) sameBits(some[key], gather(all[key], 1, order), `${key} of row`)
      }
      for (const row of [0, 20, 53]) await same(lab, [row])
      await lab.withThreads(on => same(on, lab.random.shuffled(Array(rows).keys())))
      const flat = repeat(new Float64Array(vocab), 3)
      const one = { temperature: 1, seed: [1, 2] as const, position: 5 }
      const { ids } = await sample(lab, flat, [one, { ...one, seed: [1, 3] }, { ...one, position: 6 }])
      if (new Set(ids).size !== 3) throw new Error(`ids are ${ids}`)
    },
  )
  check('logprobs to float32 accuracy over the whole range', async lab => {
    for (const std of [0.01, 1, 30]) {
      const row = lab.random.normals(1025, std)
      const { ids, logprobs } = await sample(lab, repeat(row, 54), seeds(54, { temperature: std }))
      for (const [i, found] of logprobs.entries()) closeLogprob(found, logprob(row.map(fround), ids[i]!))
    }
  })
  check('dead rows', async lab => {
    const rest = samplingOf(lab, seeds(9, { temperature: 1 }))
    await lab.checkDeadRows(24, (op, x, _, step) => op.sample(op.selectRows(x, step), rest).ids)
    await lab.checkDeadRows(24, (op, x, _, step) => op.sample(op.selectRows(x, step), rest).logprobs)
  })
})
