/**
 * A device whose next token is a hash of the history that it reads through the page table: a wrong page, a stale one, a
 * wrong position or order of writes changes the answer. Commands run when somebody reads, as late as may be.
 *
 * An activation is one number a row, and so is what a token leaves in a layer's cache. Poison, what was never written,
 * makes poison of everything that it meets. Logits [out, vocab] are one number a row, too: the hash that a token is drawn from.
 */
import type { Device, DeviceTensor, Edits, KvLayer, Program, Recorder, Sampling, StepInputs, Weight } from '../../binding.d.ts'
import { errorFor } from '../../lib/errors.ts'
import { adjusted, draw, logprobOf, mix, nameOf, poison, random, topOf } from './fake_model.ts'

// Of jest's global scope every look-up takes a microsecond.
const { floor, max } = Math

/** Tokens reported besides the sampled one. */
const mostTop = 20

export type Call = 'tensor' | 'record' | 'run' | 'write' | 'read' | 'copyPages'
/** A call that throws and does nothing, or is taken and fails when its turn comes: then all later reads reject. */
export interface Fault {
  readonly how: 'throw' | 'later'
  readonly error: Error
}

export interface FakeOptions {
  /** Of the moments at which reads resolve. */
  readonly seed?: number
  /** They are in this turn of the event loop. */
  readonly sameTurn?: boolean
  /** Whether the n-th call of its kind, from 1 on, fails. */
  readonly fault?: (call: Call, n: number) => Fault | undefined
  /** Rows that are not finite, by the hash that they are. */
  readonly notFinite?: ReadonlySet<number>
}

class Tensor {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly data: Int32Array | Float32Array | Uint32Array
  /** Rows that are alive, of an activation. */
  rows = 0
  disposed = false

  constructor(dtype: string, shape: readonly number[], data: Int32Array | Float32Array | Uint32Array) {
    this.dtype = dtype
    this.shape = shape
    this.data = data
  }

  [Symbol.dispose](): void {
    this.disposed = true
  }
}

function of(tensor: DeviceTensor): Tensor {
  const fake = tensor as unknown as Tensor
  if (fake.disposed) throw errorFor('ERR_DISPOSED', 'the tensor was disposed')
  return fake
}

/** Takes the commands of one recording. */
class FakeRecorder implements Recorder {
  readonly commands: (() => void)[] = []
  readonly notFinite: ReadonlySet<number> | undefined

  constructor(notFinite: ReadonlySet<number> | undefined) {
    this.notFinite = notFinite
  }

  embed(_table: Weight, step: StepInputs): never {
    const [tokens, source, queryStart] = [of(step.tokens).data, of(step.source).data, of(step.queryStart).data]
    const previous = step.previous && of(step.previous).data
    return this.#command(tokens.length, y => {
      y.rows = queryStart.at(-1)!
      for (let r = 0; r < y.rows; r++) {
        const id = source[r]! < 0 ? tokens[r]! : (previous?.[source[r]!] ?? poison)
        y.data[r] = mix(id, 1)
      }
    })
  }

  rmsNorm(x: DeviceTensor): never {
    return x as never
  }

  /** Leaves x as it is; with a residual stream it makes one of both. */
  linear(x: DeviceTensor, weight: Weight, options?: { add?: DeviceTensor; as?: string }): never {
    if (!options?.add) return x as never
    const [from, add, name] = [of(x), of(options.add), nameOf(weight)]
    return this.#command(from.data.length, y => {
      y.rows = from.rows
      for (let r = 0; r < y.rows; r++) y.data[r] = mix(add.data[r]! < 0 ? poison : add.data[r]! + name, from.data[r]!)
    })
  }

  ropeAppend(qkv: DeviceTensor, kv: KvLayer, step: StepInputs): never {
    const [x, k, v] = [of(qkv), of(kv.k).data, of(kv.v).data]
    const [slots, positions] = [of(step.slots).data, of(step.positions).data]
    this.commands.push(() => {
      for (let r = 0; r < x.rows; r++) {
        const slot = slots[r]!
        if (slot < 0) continue
        if (slot >= k.length) throw new Error(`slot ${slot} is outside of the cache`)
        k[slot] = mix(x.data[r]!, positions[r]!)
        v[slot] = x.data[r]!
      }
    })
    return qkv as never
  }

  /** A row's keys are those up to itself, so the hash of the rows before it is the beginning of its own. */
  attention(q: DeviceTensor, kv: KvLayer, step: StepInputs): never {
    const [x, k, v] = [of(q), of(kv.k).data, of(kv.v).data]
    const [queryStart, kvLength, table] = [of(step.queryStart).data, of(step.kvLength).data, of(step.pageTable).data]
    const maxPages = of(step.pageTable).shape[1]!
    const size = of(kv.k).shape[2]!
    return this.#command(x.data.length, y => {
      y.rows = x.rows
      for (let s = 0; s < kvLength.length; s++) {
        const [first, end] = [queryStart[s]!, queryStart[s + 1]!]
        let hash = 0
        let key = 0
        for (let r = first; r < end; r++) {
          for (const visible = kvLength[s]! - (end - 1 - r); key < visible; key++) {
            const page = table[s * maxPages + floor(key / size)] ?? poison
            const slot = page * size + (key % size)
            hash = page < 0 ? poison : mix(mix(hash, k[slot] ?? poison), v[slot] ?? poison)
          }
          y.data[r] = mix(hash, x.data[r]!)
        }
      }
    })
  }

  swiglu(gateUp: DeviceTensor): never {
    return gateUp as never
  }

  selectRows(x: DeviceTensor, step: StepInputs): never {
    const [from, outputs] = [of(x), of(step.outputs).data]
    return this.#command(outputs.length, y => {
      for (y.rows = 0; y.rows < outputs.length && outputs[y.rows]! >= 0; y.rows++) {
        if (outputs[y.rows]! >= from.rows) throw new Error(`row ${outputs[y.rows]} of ${from.rows} is dead`)
        y.data[y.rows] = from.data[outputs[y.rows]!]!
      }
    })
  }

  adjust(logits: DeviceTensor, edits: Edits): never {
    const x = of(logits)
    const [start, end, ids, bias, count] = [edits.start, edits.end, edits.ids, edits.bias, edits.count].map(t => of(t).data)
    const [repetition, frequency, presence] = [edits.repetition, edits.frequency, edits.presence].map(t => of(t).data)
    const [newest, previous] = [of(edits.newest).data, edits.previous && of(edits.previous).data]
    const [maskRow, masks] = [of(edits.maskRow).data, of(edits.masks!)]
    const words = masks.shape[1]!
    return this.#command(x.data.length, y => {
      y.rows = x.rows
      for (let r = 0; r < y.rows; r++) {
        const rules = new Map<number, [bias: number, count: number]>()
        for (let e = start![r]!; e < end![r]!; e++) rules.set(ids![e]!, [bias![e]!, count![e]!])
        const last = newest[r]! < 0 ? undefined : previous?.[newest[r]!]
        if (last !== undefined) rules.set(last, [rules.get(last)?.[0] ?? 0, max(0, rules.get(last)?.[1] ?? 0) + 1])
        const mask = maskRow[r]! < 0 ? undefined : masks.data.subarray(maskRow[r]! * words, (maskRow[r]! + 1) * words)
        y.data[r] = adjusted(x.data[r]!, rules, [repetition![r]!, frequency![r]!, presence![r]!], mask)
      }
    })
  }

  sample(logits: DeviceTensor, sampling: Sampling): never {
    const x = of(logits)
    const [temperature, topP, minP, topK] = [sampling.temperature, sampling.topP, sampling.minP, sampling.topK].map(
      t => of(t).data,
    )
    const [seed, position] = [of(sampling.seed).data, of(sampling.position).data]
    const sampled = sampling.sampled && of(sampling.sampled).data
    if (sampled && sampled.length < x.data.length) throw errorFor('ERR_SHAPE', `sample: sampled has ${sampled.length} rows`)
    const logprobs = activation(x.data.length, 'f32')
    const status = activation(x.data.length)
    const ids = this.#command(x.data.length, y => {
      y.rows = x.rows
      for (let r = 0; r < x.rows; r++) {
        const values = { temperature: temperature![r]!, topP: topP![r]!, minP: minP![r]!, topK: topK![r]! }
        y.data[r] = draw(x.data[r]!, position[r]!, { ...values, seed: [seed[2 * r]!, seed[2 * r + 1]!] })
        status.data[r] = this.notFinite?.has(x.data[r]!) ? 1 : 0
        logprobs.data[r] = status.data[r] === 0 ? logprobOf(x.data[r]!, y.data[r]!) : Number.NaN
        if (sampled) sampled[r] = y.data[r]!
      }
    })
    return { ids, logprobs, status } as never
  }

  logprobs(logits: DeviceTensor, sampled: DeviceTensor, given: DeviceTensor): never {
    const [x, ids, wanted] = [of(logits), of(sampled), of(given).data]
    const topIds = activation(x.data.length * mostTop)
    const top = activation(x.data.length * mostTop, 'f32')
    const chosen = activation(x.data.length, 'f32')
    this.commands.push(() => {
      for (let r = 0; r < x.rows; r++) {
        const hash = x.data[r]!
        const finite = !this.notFinite?.has(hash)
        chosen.data[r] = finite ? logprobOf(hash, wanted[r]! < 0 ? ids.data[r]! : wanted[r]!) : Number.NaN
        for (let i = 0; i < mostTop; i++) {
          topIds.data[r * mostTop + i] = topOf(hash, i)
          top.data[r * mostTop + i] = logprobOf(hash, topOf(hash, i))
        }
      }
    })
    return { chosen, topIds, top } as never
  }

  #command(rows: number, run: (y: Tensor) => void): never {
    const y = activation(rows)
    this.commands.push(() => run(y))
    return y as never
  }
}

const activation = (rows: number, dtype: 'i32' | 'f32' = 'i32') =>
  new Tensor(dtype, [rows], dtype === 'i32' ? new Int32Array(rows) : new Float32Array(rows))

export class FakeDevice implements Device {
  readonly name = 'fake'
  readonly description = 'fake'
  readonly activation = 'bf16'
  readonly freeMemory = Number.POSITIVE_INFINITY
  /** How often each was called. */
  readonly calls: Record<Call, number> = { tensor: 0, record: 0, run: 0, write: 0, read: 0, copyPages: 0 }
  /** Programs that ran while reads of the ones before were under way. */
  overlaps = 0
  readonly #options: FakeOptions
  readonly #random: (n: number) => number
  /** What is enqueued; the first of it has the number #ran. */
  #stream: (() => void)[] = []
  #ran = 0
  #failure: Error | undefined
  #closed: Error | undefined
  readonly #reads = new Set<(error: Error) => void>()

  constructor(options: FakeOptions = {}) {
    this.#options = options
    this.#random = random(options.seed ?? 1)
  }

  tensor(dtype: never, shape: readonly number[]): never {
    this.#count('tensor')
    if (dtype === 'bf16') return new Tensor(dtype, shape, new Int32Array(shape[0]! * shape[2]!).fill(poison)) as never
    const size = shape.reduce((a, b) => a * b)
    const make = { i32: Int32Array, u32: Uint32Array, f32: Float32Array }[dtype as 'i32' | 'u32' | 'f32']
    return new Tensor(dtype, shape, new make(size)) as never
  }

  write(to: DeviceTensor, from: ArrayBufferView, at?: Int32Array): void {
    const error = this.#count('write')
    const { data } = of(to)
    if (from.constructor !== data.constructor) throw errorFor('ERR_DTYPE', `write: ${from.constructor.name} to ${of(to).dtype}`)
    const copy = (from as Int32Array).slice()
    if (at) {
      const places = at.slice()
      if (places.length !== copy.length) throw errorFor('ERR_ARGUMENT', `write: ${copy.length} elements, ${places.length} places`)
      for (const place of places)
        if (!(place >= 0 && place < data.length)) throw errorFor('ERR_ARGUMENT', `write: place ${place}`)
      this.#enqueue(error, () => {
        for (let i = 0; i < places.length; i++) data[places[i]!] = copy[i]!
      })
      return
    }
    if (copy.length > data.length) throw errorFor('ERR_SHAPE', `write: ${copy.length} elements to ${data.length}`)
    this.#enqueue(error, () => data.set(copy))
  }

  read<V extends ArrayBufferView>(from: DeviceTensor, into: V): Promise<V> {
    const error = this.#count('read')
    const { data } = of(from)
    const { length } = into as unknown as Int32Array
    if (length > data.length) throw errorFor('ERR_SHAPE', `read: ${length} elements of ${data.length}`)
    this.#enqueue(error, () => (into as unknown as Int32Array).set(data.subarray(0, length)))
    const end = this.#ran + this.#stream.length
    return new Promise((resolve, reject) => {
      this.#reads.add(reject)
      this.#soon(() => {
        if (!this.#reads.delete(reject)) return
        this.#run(end)
        if (this.#failure) reject(this.#failure)
        else resolve(into)
      })
    })
  }

  copyPages(kv: readonly KvLayer[], from: Int32Array, to: Int32Array): void {
    const error = this.#count('copyPages')
    const [sources, targets] = [from.slice(), to.slice()]
    const caches = kv.flatMap(({ k, v }) => [of(k), of(v)])
    this.#enqueue(error, () => {
      for (const { data, shape } of caches) {
        const size = shape[2]!
        for (const [i, page] of sources.entries()) data.copyWithin(targets[i]! * size, page * size, (page + 1) * size)
      }
    })
  }

  record<R>(body: (op: Recorder) => R): Program<R> {
    this.#count('record')
    const recorder = new FakeRecorder(this.#options.notFinite)
    const outputs = body(recorder)
    const run = () => {
      const error = this.#count('run')
      if (this.#reads.size > 0) this.overlaps++
      this.#enqueue(error, () => {
        for (const command of recorder.commands) command()
      })
    }
    return { outputs, cost: [], memory: 0, launches: [], run, [Symbol.dispose]: () => {} }
  }

  [Symbol.dispose](): void {
    this.#closed ??= errorFor('ERR_CLOSED', 'the device was closed')
    for (const reject of this.#reads) reject(this.#closed)
    this.#reads.clear()
  }

  weights = unused
  upload = unused
  stack = unused
  random = unused
  clock = unused
  measure = unused
  measureLibrary = unused

  /** Counts a call: with what it fails once it was taken. */
  #count(call: Call): Error | undefined {
    if (this.#closed) throw this.#closed
    this.calls[call]++
    const fault = this.#options.fault?.(call, this.calls[call])
    if (fault?.how === 'throw') throw fault.error
    return fault?.error
  }

  #enqueue(error: Error | undefined, command: () => void): void {
    const fails = () => {
      throw error
    }
    this.#stream.push(error ? fails : command)
  }

  /** Runs what is enqueued up to a number. */
  #run(end: number): void {
    if (end <= this.#ran) return
    const commands = this.#stream.splice(0, end - this.#ran)
    this.#ran = end
    try {
      if (!this.#failure) for (const command of commands) command()
    } catch (error) {
      this.#failure = error as Error
    }
  }

  /** In this turn of the event loop, or in the next one. */
  #soon(what: () => void): void {
    const turns = this.#random(this.#options.sameTurn ? 3 : 4)
    if (turns === 3) setImmediate(what)
    else if (turns === 2) void Promise.resolve().then(() => Promise.resolve().then(what))
    else queueMicrotask(what)
  }
}

function unused(): never {
  throw new Error('no engine needs this')
}
