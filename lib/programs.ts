/** Which recorded program fits a batch; records on first need. */
import type { Device, F32, I32, KvLayer, Logprobs, Program, Recorder, Sampled } from '../binding.d.ts'
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
  /** Rows through the head in one step, at most. */
  readonly maxRows: number
}

/** What a step needs of a program. */
export interface StepSize {
  readonly tokens: number
  /** Through the head; one for each token, up to maxSequences, if absent. */
  readonly rows?: number
  /** Room for edits of logits; absent: none of its rows has any, nor a mask. */
  readonly edits?: number | undefined
  /** Whether log-probabilities of more than the sampled tokens are asked for. */
  readonly scores?: boolean
}

/** Sampled tokens, and with scores what else is asked for. */
export type StepOutputs = Sampled & Partial<Logprobs>

/** Programs for 1, 2, 4, ... tokens. A row beyond the batch costs next to nothing, so few buckets are enough. */
export class Programs {
  readonly #device: Device
  readonly #model: Model
  readonly #kv: readonly KvLayer[]
  readonly #limits: ProgramLimits
  readonly #generation = new Map<string, Recorded<StepOutputs>>()
  readonly #evaluation = new Map<string, Recorded<F32>>()
  /** Ids of the last step, where the next one finds them. */
  readonly #sampled: I32

  constructor(device: Device, model: Model, kv: readonly KvLayer[], limits: ProgramLimits) {
    this.#device = device
    this.#model = model
    this.#kv = kv
    this.#limits = limits
    this.#sampled = device.tensor('i32', [bucket(limits.maxRows)])
  }

  /** Computes so many tokens and samples so many rows. */
  generation({
    tokens,
    rows = Math.min(tokens, this.#limits.maxSequences),
    edits,
    scores = false,
  }: StepSize): Recorded<StepOutputs> {
    const { maxSequences, maxPages } = this.#limits
    const size = bucket(tokens)
    const seqs = Math.min(size, maxSequences)
    const outputs = rows <= seqs ? seqs : bucket(rows)
    // Twice: rows come and go for some time before their edits have to be laid out anew.
    const room = edits === undefined ? 0 : bucket(Math.max(2 * edits, 256))
    // Log-probabilities are those before the edits.
    const scored = scores || room > 0
    return recall(this.#generation, `${size} ${outputs} ${room} ${scored}`, () => {
      const changes = room > 0 ? { room, vocab: this.#model.head.shape[0]! } : undefined
      const sizes = { tokens: size, seqs, outputs, maxPages, scores: scored, edits: changes }
      const buffers = new StepBuffers(this.#device, sizes, this.#sampled)
      const record = (op: Recorder): StepOutputs =>
        scored ? this.#scored(op, buffers) : forward(op, this.#model, this.#kv, buffers.step, buffers.sampling)
      return { buffers, program: this.#device.record(record) }
    })
  }

  #scored(op: Recorder, { step, sampling, edits, given }: StepBuffers): StepOutputs {
    const raw = logits(op, this.#model, this.#kv, step)
    const sampled = op.sample(edits ? op.adjust(raw, edits.edits) : raw, sampling)
    return { ...sampled, ...op.logprobs(raw, sampled.ids, given!) }
  }

  /** Logits of every row of one sequence. */
  evaluation(tokens: number): Recorded<F32> {
    const size = bucket(tokens)
    return recall(this.#evaluation, `${size}`, () => {
      const { maxPages } = this.#limits
      const sizes = { tokens: size, seqs: 1, outputs: size, maxPages }
      const buffers = new StepBuffers(this.#device, sizes)
      return { buffers, program: this.#device.record(op => logits(op, this.#model, this.#kv, buffers.step)) }
    })
  }
}

const bucket = (size: number) => 2 ** Math.ceil(Math.log2(size))

function recall<R>(known: Map<string, R>, key: string, record: () => R): R {
  const found = known.get(key) ?? record()
  known.set(key, found)
  return found
}
