/** Which recorded program fits a batch; records on first need. */
import type { Device, F32, KvLayer, Program, Sampled } from '../binding.d.ts'
import { forward, logits } from './forward.ts'
import { StepBuffers } from './step.ts'
import type { Model } from './weights.ts'

/** A program and the buffers it reads. */
export interface Recorded<R> {
  readonly buffers: StepBuffers
  readonly program: Program<R>
}

export interface ProgramLimits {
  readonly maxSequences: number
  /** Pages of one sequence. */
  readonly maxPages: number
}

/** Programs for 1, 2, 4, ... tokens. On the CPU a row beyond the batch costs nothing, so few buckets are enough. */
export class Programs {
  readonly #device: Device
  readonly #model: Model
  readonly #kv: readonly KvLayer[]
  readonly #limits: ProgramLimits
  readonly #generation = new Map<number, Recorded<Sampled>>()
  readonly #evaluation = new Map<number, Recorded<F32>>()

  constructor(device: Device, model: Model, kv: readonly KvLayer[], limits: ProgramLimits) {
    this.#device = device
    this.#model = model
    this.#kv = kv
    this.#limits = limits
  }

  /** Samples the last row of each sequence. */
  generation(tokens: number): Recorded<Sampled> {
    return recall(this.#generation, tokens, size => {
      const seqs = Math.min(size, this.#limits.maxSequences)
      const buffers = new StepBuffers(this.#device, { tokens: size, seqs, outputs: seqs, maxPages: this.#limits.maxPages })
      const { step, sampling } = buffers
      return { buffers, program: this.#device.record(op => forward(op, this.#model, this.#kv, step, sampling)) }
    })
  }

  /** Logits of every row of one sequence. */
  evaluation(tokens: number): Recorded<F32> {
    return recall(this.#evaluation, tokens, size => {
      const buffers = new StepBuffers(this.#device, { tokens: size, seqs: 1, outputs: size, maxPages: this.#limits.maxPages })
      return { buffers, program: this.#device.record(op => logits(op, this.#model, this.#kv, buffers.step)) }
    })
  }
}

function recall<R>(known: Map<number, R>, tokens: number, record: (size: number) => R): R {
  const size = 2 ** Math.ceil(Math.log2(tokens))
  const found = known.get(size) ?? record(size)
  known.set(size, found)
  return found
}
