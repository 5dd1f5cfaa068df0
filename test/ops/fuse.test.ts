// Neighbours that become one kernel (native/ops/fuse.h): the bits of one after the other, on every device.
import { expect } from '@jest/globals'
import type { DeviceTensor, F32, KvLayer, Program, Recorder, StepInputs, Weight } from '../../binding.d.ts'
import { conforms, Lab, type Results } from './conforms.ts'
import { Random, sameBits, type Values } from './numbers.ts'

interface Shape {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly dim: number
  readonly hidden: number
  readonly rows: number
}
const shapes: readonly Shape[] = [
  { heads: 4, kvHeads: 2, headDim: 64, dim: 64, hidden: 24, rows: 1 },
  { heads: 2, kvHeads: 1, headDim: 64, dim: 136, hidden: 8, rows: 2 },
  { heads: 2, kvHeads: 1, headDim: 128, dim: 264, hidden: 520, rows: 3 },
  { heads: 3, kvHeads: 1, headDim: 64, dim: 520, hidden: 64, rows: 7 },
  { heads: 8, kvHeads: 2, headDim: 64, dim: 72, hidden: 136, rows: 8 },
  { heads: 1, kvHeads: 1, headDim: 128, dim: 1032, hidden: 72, rows: 8 },
  { heads: 2, kvHeads: 2, headDim: 64, dim: 200, hidden: 40, rows: 9 },
  { heads: 2, kvHeads: 1, headDim: 128, dim: 64, hidden: 104, rows: 17 },
  { heads: 2, kvHeads: 1, headDim: 64, dim: 96, hidden: 56, rows: 54 },
  { heads: 4, kvHeads: 1, headDim: 64, dim: 40, hidden: 72, rows: 97 },
  { heads: 1, kvHeads: 1, headDim: 64, dim: 328, hidden: 200, rows: 130 },
  { heads: 2, kvHeads: 1, headDim: 64, dim: 264, hidden: 136, rows: 270 },
  { heads: 1, kvHeads: 1, headDim: 128, dim: 72, hidden: 16, rows: 577 },
]

/** Everything that both ways are given; the same on every lab of a seed. */
interface Layer {
  readonly table: Weight
  readonly norm: Weight
  readonly wqkv: Weight
  readonly wGateUp: Weight
  readonly wDown: Weight
  readonly kv: KvLayer
  readonly step: StepInputs
  readonly invFreq: F32
}

const pageSize = 5
const eps = 1e-5

async function layerOf(lab: Lab, { heads, kvHeads, headDim, dim, hidden, rows }: Shape, live = rows): Promise<Layer> {
  const pages = Math.ceil(rows / pageSize) + 1
  const cache = () => lab.activation([pages, kvHeads, pageSize, headDim], new Float64Array(pages * kvHeads * pageSize * headDim))
  // Every third row is padding, which is computed and not kept.
  const slots = Array.from({ length: rows }, (_, i) => (i % 3 === 2 ? -1 : rows - i))
  const all = lab.random.normals(rows * dim, 3)
  const table = await lab.weight([rows, dim], all)
  const step = {
    tokens: lab.i32(Array.from({ length: rows }, (_, i) => i)),
    source: lab.i32(new Array(rows).fill(-1)),
    queryStart: lab.i32([0, live]),
    positions: lab.i32(Array.from({ length: rows }, (_, i) => i * 37)),
    slots: lab.i32(slots),
  } as unknown as StepInputs
  return {
    table,
    norm: await lab.weight([dim], lab.random.normals(dim)),
    wqkv: await lab.weight([(heads + 2 * kvHeads) * headDim, dim], lab.random.normals((heads + 2 * kvHeads) * headDim * dim)),
    wGateUp: await lab.weight([2 * hidden, dim], lab.random.normals(2 * hidden * dim, 0.2)),
    wDown: await lab.weight([dim, hidden], lab.random.normals(dim * hidden)),
    kv: { k: cache().tensor, v: cache().tensor },
    step,
    invFreq: lab.fill(
      'f32',
      [headDim / 2],
      Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
    ),
  }
}

/** A layer without its attention. */
function body(op: Recorder, l: Layer) {
  const x = op.embed(l.table, l.step)
  const q = op.ropeAppend(op.linear(op.rmsNorm(x, l.norm, eps), l.wqkv), l.kv, l.step, l.invFreq)
  const h = op.swiglu(op.linear(op.rmsNorm(x, l.norm, eps), l.wGateUp))
  const added = op.linear(h, l.wDown, { add: x })
  const logits = op.linear(op.rmsNorm(added, l.norm, eps), l.wGateUp, { as: 'f32' })
  return { q, h, added, logits }
}
const commands = (program: Program<unknown>) => program.cost.map(({ op }) => op)
const apart = ['embed', 'rmsNorm', 'linear', 'ropeAppend', 'rmsNorm', 'linear', 'swiglu', 'linear', 'rmsNorm', 'linear']
const together = ['embed', 'rmsNorm+linear+ropeAppend', 'rmsNorm+linear+swiglu', 'linear', 'rmsNorm+linear']

/** Runs `record` with and without fusion, from the same random numbers; what it returned, and the cache. */
async function both<R extends Results>(lab: Lab, shape: Shape, record: (op: Recorder, l: Layer) => R, live?: number) {
  const seed = lab.random.u32()
  const run = async (on: Lab) => {
    on.random = new Random(seed)
    const layer = await layerOf(on, shape, live)
    const program = on.device.record(op => record(op, layer))
    program.run()
    const tensors = Object.entries<DeviceTensor>({ ...program.outputs, k: layer.kv.k, v: layer.kv.v })
    const found: [string, Values][] = []
    for (const [name, tensor] of tensors) found.push([name, await on.values(tensor)])
    return { found: new Map(found), commands: commands(program) }
  }
  const fused = await run(lab)
  using other = new Lab(lab.configuration, 2, false, false)
  const unfused = await run(other)
  return { fused, unfused }
}
function same(fused: ReadonlyMap<string, Values>, unfused: ReadonlyMap<string, Values>): void {
  for (const [name, values] of unfused) {
    if (values.every(v => v === 0)) throw new Error(`${name} is nothing but zeros`)
    sameBits(fused.get(name)!, values, name)
  }
}

conforms('fuse', check => {
  for (const shape of shapes) {
    const { heads, kvHeads, headDim, dim, hidden, rows } = shape
    check(`${rows} rows, ${heads}/${kvHeads} heads of ${headDim}, dim ${dim}, hidden ${hidden}`, async lab => {
      const { fused, unfused } = await both(lab, shape, body)
      expect(unfused.commands).toEqual(apart)
      expect(fused.commands).toEqual(lab.device.name === 'cpu' ? apart : together)
      same(fused.found, unfused.found)
    })
  }
  for (const [live, rows] of [
    [0, 3],
    [2, 7],
    [5, 40],
    [20, 300],
  ] as const)
    check(`${live} live of ${rows} rows`, async lab => {
      const shape = { heads: 2, kvHeads: 1, headDim: 64, dim: 72, hidden: 24, rows }
      const { fused, unfused } = await both(lab, shape, body, live)
      for (const [name, values] of unfused.found) {
        const each = name === 'k' || name === 'v' ? values.length : (values.length / rows) * live
        sameBits(fused.found.get(name)!.subarray(0, each), values.subarray(0, each), name)
      }
    })
  check('what somebody else reads, too, stays a command of its own', async lab => {
    const shape = { heads: 2, kvHeads: 1, headDim: 64, dim: 72, hidden: 24, rows: 7 }
    const { fused, unfused } = await both(lab, shape, (op, l) => {
      const h = op.rmsNorm(op.embed(l.table, l.step), l.norm, eps)
      const gateUp = op.linear(h, l.wGateUp)
      const qkv = op.linear(h, l.wqkv)
      return { swiglu: op.swiglu(gateUp), qkv, q: op.ropeAppend(qkv, l.kv, l.step, l.invFreq) }
    })
    expect(fused.commands).toEqual(['embed', 'rmsNorm', 'linear', 'linear', 'swiglu', 'ropeAppend'])
    expect(unfused.commands).toEqual(fused.commands)
    same(fused.found, unfused.found)
  })
})
