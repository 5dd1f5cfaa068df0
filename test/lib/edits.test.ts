// The edits of logits on the device, after any steps, are those that a computation from the beginning gives.
import { expect, test } from '@jest/globals'
import type { Edits, I32 } from '../../binding.d.ts'
import { EditBuffers, type RuleOptions, TokenRules } from '../../lib/edits.ts'
import { random } from './fake_model.ts'
import { dataOf, Memory } from './memory_device.ts'

const vocab = 300
const words = 10
const off: RuleOptions = { repetition: 1, frequency: 0, presence: 0, bias: new Map(), minTokens: 0, stopTokens: new Set() }
const { fround, max } = Math

/** A sequence as far as rules look at it. */
interface Asking {
  readonly rules: TokenRules | undefined
  readonly tokens: number[]
  readonly promptLength: number
  /** Tokens that are sampled, and not read. */
  ahead: number
}
/** Of one row; edits that change nothing are left out, for nobody can tell. */
const text = (edits: ReadonlyMap<number, [bias: number, count: number]>, ...rest: unknown[]): string => {
  const all = [...edits].filter(([, [bias, count]]) => bias !== 0 || count >= 0)
  return [all.sort(([a], [b]) => a - b).join(' '), ...rest].join(' | ')
}

/** What must be there for the next token of a sequence. */
function expectedRow({ rules, tokens, promptLength, ahead }: Asking): string {
  const { repetition, frequency, presence, bias, minTokens, stopTokens, mask } = rules?.options ?? off
  const edits = new Map([...bias].map(([id, value]): [number, [number, number]] => [id, [fround(value), -1]]))
  const counts = repetition !== 1 || frequency !== 0 || presence !== 0
  for (const [i, id] of (counts ? tokens : []).entries()) {
    const [value, count] = edits.get(id) ?? [0, -1]
    edits.set(id, [value, max(count, 0) + (i < promptLength ? 0 : 1)])
  }
  if (tokens.length + ahead - promptLength < minTokens)
    for (const id of stopTokens) edits.set(id, [Number.NEGATIVE_INFINITY, edits.get(id)?.[1] ?? -1])
  const newest = rules && ahead > 0 ? 3 : -1
  return text(edits, [repetition, frequency, presence].map(fround), newest, mask?.mask?.subarray(0, words))
}

/** What is there. */
function foundRow(edits: Edits, row: number): string {
  const one = (tensor: Edits['start' | 'repetition']) => dataOf(tensor)[row]!
  const all = new Map<number, [number, number]>()
  for (let e = one(edits.start); e < one(edits.end); e++) {
    const id = dataOf(edits.ids)[e]!
    if (all.has(id)) throw new Error(`${id} comes twice`)
    all.set(id, [dataOf(edits.bias)[e]!, dataOf(edits.count)[e]!])
  }
  const mask = one(edits.maskRow)
  const allowed = mask < 0 ? undefined : dataOf(edits.masks!).subarray(mask * words, (mask + 1) * words)
  return text(all, [edits.repetition, edits.frequency, edits.presence].map(one), one(edits.newest), allowed)
}

const of = random(3)
const tokens = (count: number) => Array.from({ length: count }, () => of(vocab))

function someRules(): TokenRules | undefined {
  if (of(6) === 0) return undefined
  const counts = of(3) > 0
  return new TokenRules({
    repetition: counts ? 1 + of(3) / 10 : 1,
    frequency: counts ? of(3) / 10 : 0,
    presence: counts ? of(3) / 10 : 0,
    bias: new Map(tokens(of(4)).map(id => [id, of(20) / 10 - 1])),
    minTokens: of(2) * of(12),
    stopTokens: new Set(tokens(of(4))),
    mask: of(4) === 0 ? { mask: Int32Array.from({ length: words + 1 }, () => of(100)) } : undefined,
  })
}

function someone(): Asking {
  const prompt = tokens(1 + of(30))
  return { rules: someRules(), tokens: prompt, promptLength: prompt.length, ahead: of(2) }
}

function put(buffers: EditBuffers, rows: readonly Asking[]): void {
  buffers.clear()
  for (const [row, { rules, tokens, promptLength, ahead }] of rows.entries())
    if (rules) buffers.put(row, rules, tokens, promptLength, tokens.length + ahead, ahead > 0 ? 3 : -1)
    else buffers.plain(row)
  buffers.write(rows.length)
}
const roomOf = (rows: readonly Asking[]) =>
  rows.reduce((sum, { rules, tokens, promptLength }) => sum + (rules?.see(tokens, promptLength).room ?? 0), 0)

test('rows that move, begin and end, programs in turns, writes that fail', () => {
  const memory = new Memory()
  const previous = memory.tensor('i32', [8]) as I32
  const most = 12
  // One has no more room than rows need, so that its regions are made anew all the time.
  const programs = [most * 450, 3 * most * 450].map(room => new EditBuffers(memory.device, most, room, vocab, previous))
  let rows: Asking[] = []
  let failed = 0
  for (let step = 0; step < 3000; step++) {
    rows = rows.filter(() => of(12) > 0)
    while (rows.length < 1 + of(most)) rows.splice(of(rows.length + 1), 0, someone())
    const buffers = programs[of(8) === 0 ? 1 - ((step >> 8) % 2) : (step >> 8) % 2]!
    expect(roomOf(rows)).toBeLessThanOrEqual(most * 450)
    if (of(20) === 0) memory.failsAfter = of(10)
    try {
      put(buffers, rows)
      expect(rows.map((_, row) => foundRow(buffers.edits, row))).toEqual(rows.map(expectedRow))
    } catch (error) {
      if ((error as Error).message !== 'a write fails') throw error
      failed++
      buffers.forget()
    }
    memory.failsAfter = Number.POSITIVE_INFINITY
    // What was sampled is read at once or later; in some steps much of it.
    for (const one of rows) {
      for (let i = of(4) === 0 ? of(20) : of(2); i > 0; i--) one.tokens.push(of(vocab))
      one.ahead = of(2)
      if (one.rules?.options.mask?.mask) one.rules.options.mask.mask[0] = of(100)
    }
  }
  expect(failed).toBeGreaterThan(50)
})

test('a step writes what is new alone, also when rows move', () => {
  const memory = new Memory()
  const asking = Array.from({ length: 64 }, (_, i): Asking => {
    const prompt = Array.from({ length: 400 }, (_, t) => (31 * i + t) % 1000)
    return { rules: new TokenRules({ ...off, presence: 1 }), tokens: prompt, promptLength: 400, ahead: 1 }
  })
  const buffers = new EditBuffers(memory.device, 64, 2 * roomOf(asking), 1000, memory.tensor('i32', [64]) as I32)
  put(buffers, asking)
  const rest = [...asking]
  for (let step = 0; step < 60; step++) {
    rest.splice(of(rest.length), 1)
    for (const one of rest) one.tokens.push(of(1000))
    memory.written = memory.calls = 0
    put(buffers, rest)
    expect(memory.calls).toBeLessThanOrEqual(10)
    // Three numbers of an edit, and seven of a row.
    expect(memory.written).toBeLessThanOrEqual(10 * rest.length)
    expect(rest.map((_, row) => foundRow(buffers.edits, row))).toEqual(rest.map(expectedRow))
  }
})
