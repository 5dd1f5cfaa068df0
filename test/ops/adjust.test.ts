import type { DeviceTensor, Edits } from '../../binding.d.ts'
import { byRows, conforms, gather, type Lab } from './conforms.ts'
import { ceil, fround, max, type Random, sameBits, type Values } from './numbers.ts'

const none = Number.NEGATIVE_INFINITY
const most = 2 ** 31 - 1

interface Edit {
  readonly id: number
  readonly bias?: number
  readonly count?: number
}
/** What is asked of a row; newest: a row of `previous`, mask: one of `masks`. */
interface Request {
  readonly edits?: readonly Edit[]
  readonly repetition?: number
  readonly frequency?: number
  readonly presence?: number
  readonly newest?: number
  readonly mask?: number
}
interface Shared {
  readonly previous?: readonly number[]
  /** Whether a token is allowed. */
  readonly masks?: readonly (readonly boolean[])[]
}

/** One row as adjust.h says it, every operation rounded to float32. */
function reference(logits: Values, request: Request, { previous = [], masks }: Shared): Values {
  const { edits = [], newest = -1, mask = -1 } = request
  const [repetition, frequency, presence] = [request.repetition ?? 1, request.frequency ?? 0, request.presence ?? 0].map(fround)
  const y = logits.map((logit, id) => (mask >= 0 && masks && !masks[mask]?.[id] ? none : logit))
  const also = previous[newest] ?? -1
  const all = edits.some(({ id }) => id === also) || also < 0 ? edits : [...edits, { id: also }]
  for (const { id, bias = 0, count = -1 } of all) {
    if (!(id in y)) continue
    const times = id === also ? max(count, 0) + 1 : count
    let l = fround(y[id]! + fround(bias))
    if (times >= 0) l = fround(l > 0 ? l / repetition! : l * repetition!)
    if (times >= 0) l = fround(l - fround(frequency! * fround(times)))
    if (times > 0) l = fround(l - presence!)
    y[id] = l
  }
  return y
}

function words(masks: readonly (readonly boolean[])[], vocab: number): Values {
  const width = ceil(vocab / 32)
  const bits = new Float64Array(masks.length * width)
  masks.forEach((mask, row) => {
    // Bits beyond the vocabulary mean nothing.
    for (let id = 0; id < 32 * width; id++) if (mask[id] ?? id % 3 === 0) bits[row * width + (id >> 5)]! += 2 ** (id % 32)
  })
  return bits
}

function editsOf(lab: Lab, vocab: number, requests: readonly Request[], { previous, masks }: Shared): Edits {
  const f32 = (pick: (request: Request) => number) => lab.f32([requests.length], requests.map(pick)).tensor
  const all = requests.flatMap(({ edits = [] }) => edits)
  if (all.length === 0) all.push({ id: 0, bias: 99 }) // in no row
  const ends: number[] = []
  for (const { edits = [] } of requests) ends.push((ends.at(-1) ?? 0) + edits.length)
  return {
    start: lab.i32([0, ...ends.slice(0, -1)]),
    end: lab.i32(ends),
    ids: lab.i32(all.map(({ id }) => id)),
    bias: lab.f32(
      [all.length],
      all.map(({ bias = 0 }) => bias),
    ).tensor,
    count: lab.i32(all.map(({ count = -1 }) => count)),
    repetition: f32(({ repetition = 1 }) => repetition),
    frequency: f32(({ frequency = 0 }) => frequency),
    presence: f32(({ presence = 0 }) => presence),
    newest: lab.i32(requests.map(({ newest = -1 }) => newest)),
    maskRow: lab.i32(requests.map(({ mask = -1 }) => mask)),
    ...(previous ? { previous: lab.i32(previous) } : {}),
    ...(masks ? { masks: lab.fill('u32', [masks.length, ceil(vocab / 32)], words(masks, vocab)) } : {}),
  }
}

async function adjust(lab: Lab, logits: Values, requests: readonly Request[], shared: Shared = {}): Promise<Values> {
  const vocab = logits.length / requests.length
  const edits = editsOf(lab, vocab, requests, shared)
  const input = lab.f32([requests.length, vocab], logits).tensor
  return lab.one(op => op.adjust(input, edits))
}

function references(logits: Values, requests: readonly Request[], shared: Shared = {}): Values {
  const vocab = logits.length / requests.length
  const y = new Float64Array(logits.length)
  for (const [i, request] of requests.entries())
    y.set(reference(logits.subarray(i * vocab, (i + 1) * vocab).map(fround), request, shared), i * vocab)
  return y
}
async function compare(lab: Lab, logits: Values, requests: readonly Request[], shared: Shared = {}): Promise<void> {
  sameBits(await adjust(lab, logits, requests, shared), references(logits, requests, shared))
}

/** A request of every kind, with up to `count` edits. */
function randomRequest(random: Random, vocab: number, count: number): Request {
  const some = new Set(Array.from({ length: random.int(0, count + 1) }, () => random.int(0, vocab)))
  const edits = random.shuffled(some).map(id => ({ id, bias: random.pick([0, 0, 3, -7.3]), count: random.int(-1, 9) }))
  return {
    edits: random.shuffled([...edits, { id: -1, bias: 1 }, { id: vocab, bias: 1, count: 1 }]),
    repetition: random.pick([1, 1.1, 0.7, 2]),
    frequency: random.pick([0, 0.1, -0.3]),
    presence: random.pick([0, 0.6, -1]),
    newest: random.int(-1, 31),
    mask: random.pick([-1, -1, 0, 1, 2]),
  }
}
function randomShared(random: Random, vocab: number): Shared {
  const previous = Array.from({ length: 31 }, () => random.int(0, vocab))
  const masks = [0.9, 0.5, 0].map(share => Array.from({ length: vocab }, () => random.uniform() < share))
  return { previous, masks }
}

conforms('adjust', check => {
  for (const vocab of [1, 7, 33, 64, 97, 1000, 1027, 4500])
    for (const rows of [1, 2, 7, 17])
      check(`${rows} rows of ${vocab} logits, requests of all kinds`, async lab => {
        const { random } = lab
        const shared = randomShared(random, vocab)
        const requests = Array.from({ length: rows }, () => randomRequest(random, vocab, 40))
        const logits = random.normals(rows * vocab, 4)
        const y = await byRows(lab, rows, some =>
          adjust(
            lab,
            gather(logits, vocab, some),
            some.map(row => requests[row]!),
            shared,
          ),
        )
        sameBits(y, references(logits, requests, shared))
      })
  check('the vocabulary of Llama 3', async lab => {
    const { random } = lab
    const vocab = 128256
    const shared = randomShared(random, vocab)
    const ends = [0, 1023, 1024, 16383, 16384, 128255].map(id => ({ id, bias: 1, count: 2 }))
    const requests = [{ ...randomRequest(random, vocab, 0), edits: ends }, randomRequest(random, vocab, 3000)]
    await compare(lab, random.normals(2 * vocab, 4), requests, shared)
  })
  check('16417 logits, each of them in an edit', async lab => {
    const { random } = lab
    const edits = random.shuffled(Array(16417).keys()).map(id => ({ id, bias: id % 5, count: random.int(-1, 3) }))
    const request = { edits, repetition: 1.3, frequency: 0.2, presence: 0.1, newest: 0, mask: 0 }
    await compare(lab, random.normals(16417, 4), [request], randomShared(random, 16417))
  })

  check('every rule alone, and their order', async lab => {
    const logits = Float64Array.of(2, -2, 0, 4, -4, 8)
    const one = async (request: Request, ...expected: number[]) =>
      sameBits(await adjust(lab, logits, [request]), Float64Array.from(expected, fround))
    const edits = [
      { id: 0, count: 0 },
      { id: 1, count: 1 },
      { id: 4, count: 3 },
      { id: 5, bias: 1 },
    ]
    await one({}, ...logits)
    await one({ edits }, 2, -2, 0, 4, -4, 9)
    await one({ edits, repetition: 2 }, 1, -4, 0, 4, -8, 9)
    await one({ edits, frequency: 0.5 }, 2, -2.5, 0, 4, -5.5, 9)
    await one({ edits, presence: 0.25 }, 2, -2.25, 0, 4, -4.25, 9)
    await one({ edits, repetition: 2, frequency: 0.5, presence: 0.25 }, 1, -4.75, 0, 4, -9.75, 9)
    // The bias comes first: 2 - 6 < 0, -2 + 3 > 0.
    const biased = [
      { id: 0, bias: -6, count: 0 },
      { id: 1, bias: 3, count: 2 },
    ]
    await one({ edits: biased, repetition: 4, presence: 1 }, -16, -0.75, 0, 4, -4, 8)
  })
  check('a mask leaves out what it does not allow, and no bias brings it back', async lab => {
    const logits = Float64Array.of(1, 2, Number.NaN, 4, Number.POSITIVE_INFINITY)
    const masks = [[true, false, false, true, false], new Array(5).fill(true)]
    const edits = [0, 1, 2].map(id => ({ id, bias: 5, count: 1 }))
    const found = await adjust(lab, logits, [{ edits, mask: 0 }], { masks })
    sameBits(found, [6, none, none, 4, none])
    sameBits(await adjust(lab, logits, [{ mask: 1 }], { masks }), logits)
    // The same words as i32.
    const input = lab.f32([1, 5], logits).tensor
    const same = editsOf(lab, 5, [{ edits, mask: 0 }], { masks })
    sameBits(await lab.one(op => op.adjust(input, { ...same, masks: lab.i32([0b1001, -1], [2, 1]) })), found)
  })
  for (const vocab of [5, 40, 1100])
    check(`${vocab} logits: a row outside of the masks allows nothing; without masks every token is allowed`, async lab => {
      const logits = lab.random.normals(3 * vocab)
      const requests = [{ mask: 2, edits: [{ id: 1, bias: 3 }] }, { mask: 1 }, { mask: most }]
      const masks = [1, 2].map(() => new Array(vocab).fill(true))
      const found = await adjust(lab, logits, requests, { masks })
      const row = (i: number) => found.subarray(i * vocab, (i + 1) * vocab)
      sameBits(row(0), new Float64Array(vocab).fill(none), 'row 0')
      sameBits(row(1), logits.subarray(vocab, 2 * vocab).map(fround), 'row 1')
      sameBits(row(2), new Float64Array(vocab).fill(none), 'row 2')
      await compare(lab, logits, requests)
    })

  check('the newest id counts once more, in an edit and without one', async lab => {
    const previous = [3, 0, 5, -1, 6, most, -(2 ** 31)]
    const counts = [-1, 0, 2, most]
    const logits = lab.random.normals(counts.length * 6, 3)
    const rule = { repetition: 1.5, frequency: 0.5, presence: 0.25 }
    for (const newest of previous.keys()) {
      const requests = counts.map(count => ({
        ...rule,
        newest,
        edits: [
          { id: 3, bias: 0.5, count },
          { id: 0, bias: 0, count: 1 },
        ],
      }))
      await compare(lab, logits, requests, { previous })
    }
    const again = { ...rule, newest: 0, edits: [{ id: 3, count: 1 }] }
    const twice = { ...rule, edits: [{ id: 3, count: 2 }] }
    const logit = lab.random.normals(6)
    sameBits(await adjust(lab, logit, [again], { previous }), await adjust(lab, logit, [twice]))
  })
  check('a newest that does not exist is ignored', async lab => {
    const logits = lab.random.normals(7 * 40)
    const rule = { repetition: 2, frequency: 1, presence: 1, edits: [{ id: 7, count: 1 }] }
    const requests = [-1, 3, 4, 1000, most, -2, -(2 ** 31)].map(newest => ({ ...rule, newest }))
    const expected = references(
      logits,
      requests.map(() => rule),
    )
    sameBits(await adjust(lab, logits, requests, { previous: [7, 7, 7] }), expected)
    sameBits(await adjust(lab, logits, requests), expected)
  })
  for (const vocab of [40, 97])
    check(`ids outside the vocabulary of ${vocab} are ignored`, async lab => {
      const outside = [-1, vocab, vocab + 1, -2, 1024 + vocab, most, -(2 ** 31)]
      const edits = outside.map(id => ({ id, bias: 1, count: 1 }))
      await compare(lab, lab.random.normals(9 * vocab), new Array(9).fill({ edits, presence: 1 }))
    })
  check('rows lie in any order, with gaps between them', async lab => {
    const { random } = lab
    const [rows, vocab] = [9, 97]
    const shared = randomShared(random, vocab)
    const requests = Array.from({ length: rows }, () => randomRequest(random, vocab, 20))
    const [start, end] = [new Array<number>(rows), new Array<number>(rows)]
    const all: Edit[] = []
    for (const row of random.shuffled(Array(rows).keys())) {
      all.push(...Array.from({ length: random.int(0, 4) }, (_, id) => ({ id, bias: 99, count: 9 })))
      start[row] = all.length
      all.push(...requests[row]!.edits!)
      end[row] = all.length
    }
    const logits = random.normals(rows * vocab, 4)
    const edits = {
      ...editsOf(lab, vocab, requests, shared),
      start: lab.i32(start),
      end: lab.i32(end),
      ids: lab.i32(all.map(({ id }) => id)),
      bias: lab.f32(
        [all.length],
        all.map(({ bias = 0 }) => bias),
      ).tensor,
      count: lab.i32(all.map(({ count = -1 }) => count)),
    }
    const input = lab.f32([rows, vocab], logits).tensor
    sameBits(await lab.one(op => op.adjust(input, edits)), references(logits, requests, shared))
  })
  check('starts and ends that do not fit: of every row the edits that there are', async lab => {
    const [rows, vocab] = [7, 24]
    const logits = lab.random.normals(rows * vocab).map(fround)
    const input = lab.f32([rows, vocab], logits).tensor
    const edits = editsOf(lab, vocab, new Array(rows).fill({}), {})
    const bias = [1, 2, 3, 4, 5]
    const hostile = {
      ...edits,
      ids: lab.i32([0, 1, 2, 3, 4]),
      bias: lab.f32([5], bias).tensor,
      count: lab.i32(new Array(5).fill(-1)),
      start: lab.i32([-(2 ** 31), 2, most, 4, 1, -3, 5]),
      end: lab.i32([2, most, 4, 1, -3, 5, 6]),
    }
    const of = [[0, 1], [2, 3, 4], [], [], [], [0, 1, 2, 3, 4], []]
    const expected = logits.map((logit, i) =>
      fround(logit + (of[Math.floor(i / vocab)]!.includes(i % vocab) ? bias[i % vocab]! : 0)),
    )
    sameBits(await lab.one(op => op.adjust(input, hostile)), expected)
  })
  check('NaN, infinity, zeros, denormals and the largest numbers', async lab => {
    const values = [Number.NaN, Number.POSITIVE_INFINITY, none, 0, -0, 1e-40, -1e-40, 3e38, -3e38]
    const logits = Float64Array.from({ length: 36 }, (_, i) => values[i % 9]!)
    const edits = (count: number) => [...values.keys()].map(id => ({ id, bias: id % 2 ? 0 : 1e38, count }))
    for (const count of [-1, 0, 1, 1e9]) {
      const request = { edits: edits(count), repetition: 1.5, frequency: 1e30, presence: 2 }
      await compare(lab, logits, [request, { edits: edits(count) }])
    }
  })
  check('the host rewrites what is asked between runs', async lab => {
    const vocab = 97
    const logits = lab.random.normals(2 * vocab)
    const requests = [{ edits: [{ id: 3, bias: 1 }] }, { edits: [{ id: 4, count: 1 }], presence: 1 }]
    const shared = { previous: [9], masks: [Array.from({ length: vocab }, (_, id) => id !== 11)] }
    const edits = editsOf(lab, vocab, requests, shared)
    const input = lab.f32([2, vocab], logits).tensor
    const program = lab.device.record(op => ({ y: op.adjust(input, edits) }))
    program.run()
    sameBits(await lab.values(program.outputs.y), references(logits, requests, shared))
    lab.rewrite(edits.start, [1, 0])
    lab.rewrite(edits.end, [1, 2])
    lab.rewrite(edits.presence, [2, 3])
    lab.rewrite(edits.newest, [0, 0])
    lab.rewrite(edits.maskRow, [-1, 0])
    program.run()
    const after = [
      { presence: 2, newest: 0 },
      {
        presence: 3,
        newest: 0,
        mask: 0,
        edits: [
          { id: 3, bias: 1 },
          { id: 4, count: 1 },
        ],
      },
    ]
    sameBits(await lab.values(program.outputs.y), references(logits, after, shared))
  })
  check('the same bits in any order, with any number of threads', async lab => {
    const { random } = lab
    const [rows, vocab] = [9, 1000]
    const shared = randomShared(random, vocab)
    const requests = Array.from({ length: rows }, () => randomRequest(random, vocab, 20))
    const logits = random.normals(rows * vocab, 3)
    const all = references(logits, requests, shared)
    const order = random.shuffled(Array(rows).keys())
    const some = order.map(row => requests[row]!)
    await lab.withThreads(async on =>
      sameBits(await adjust(on, gather(logits, vocab, order), some, shared), gather(all, vocab, order)),
    )
  })
  check('rejected calls change nothing', async lab => {
    const logits = lab.f32([3, 40], lab.random.normals(120)).tensor
    const shared = { previous: [1], masks: [new Array(40).fill(true)] }
    const fits = editsOf(lab, 40, [{ edits: [{ id: 1 }, { id: 2 }] }, {}, {}], shared)
    const wrong = (code: string, fields: Partial<Record<keyof Edits, DeviceTensor | undefined>>) =>
      lab.rejects(code, op => op.adjust(logits, { ...fits, ...fields } as Edits), logits)
    await wrong('ERR_SHAPE', { start: lab.i32([0, 0, 0, 0]) })
    await wrong('ERR_SHAPE', { end: lab.i32([0, 0]) })
    await wrong('ERR_SHAPE', { bias: lab.f32([3], [1, 2, 3]).tensor })
    await wrong('ERR_SHAPE', { count: lab.i32([1]) })
    await wrong('ERR_SHAPE', { presence: lab.f32([2], [0, 0]).tensor })
    await wrong('ERR_SHAPE', { masks: lab.i32([1, 2, 3], [1, 3]) })
    await wrong('ERR_DTYPE', { masks: lab.f32([1, 2], [1, 1]).tensor })
    await wrong('ERR_DTYPE', { repetition: fits.newest })
    await wrong('ERR_ARGUMENT', { maskRow: undefined })
  })
  check('dead rows', async lab => {
    const rest = editsOf(lab, 24, new Array(9).fill({ edits: [{ id: 3, count: 1 }], newest: 0 }), { previous: [5] })
    await lab.checkDeadRows(24, (op, x, _, step) => op.adjust(op.selectRows(x, step), rest))
  })
})
