/** What requests change in the logits before a token is drawn: penalties, biases, masks; and the buffers they travel in. */
import type { Device, Edits, I32 } from '../binding.d.ts'
import { f32, i32 } from './mirror.ts'

/** Of one sequence. */
export interface RuleOptions {
  /** Of tokens seen in prompt or answer: logits above 0 are divided by it, others multiplied. 1 = off. */
  readonly repetition: number
  /** Taken off for every time that the answer has a token, and once if it has it. 0 = off. */
  readonly frequency: number
  readonly presence: number
  /** Added to the logit of a token. */
  readonly bias: ReadonlyMap<number, number>
  /** Tokens that cannot come before there are so many others. */
  readonly minTokens: number
  readonly stopTokens: ReadonlySet<number>
  /** Which tokens may come next, a bit for each; undefined while that is not known. */
  readonly mask?: { readonly mask: Int32Array | undefined } | undefined
}

interface Edit {
  bias: number
  /** Times generated; 0: in the prompt only, -1: never seen. */
  count: number
}

/** The rules of one sequence, and what they have seen of it. Pure. */
export class TokenRules {
  readonly options: RuleOptions
  readonly #edits = new Map<number, Edit>()
  readonly #counts: boolean
  #seen = 0

  constructor(options: RuleOptions) {
    this.options = options
    this.#counts = options.repetition !== 1 || options.frequency !== 0 || options.presence !== 0
    for (const [id, bias] of options.bias) this.#edits.set(id, { bias, count: -1 })
  }

  /** Edits of single tokens, for the one after all that are known. */
  edits(tokens: readonly number[], promptLength: number): ReadonlyMap<number, Edit> {
    for (; this.#counts && this.#seen < tokens.length; this.#seen++) {
      const id = tokens[this.#seen]!
      const edit = this.#edits.get(id) ?? { bias: 0, count: -1 }
      edit.count = Math.max(edit.count, 0) + (this.#seen < promptLength ? 0 : 1)
      this.#edits.set(id, edit)
    }
    return this.#edits
  }

  /** At most so many edits. */
  size(tokens: readonly number[], promptLength: number): number {
    return this.edits(tokens, promptLength).size + this.options.stopTokens.size
  }
}

/** The edits of one program's rows. */
export class EditBuffers {
  readonly edits: Edits
  readonly #start
  readonly #ids
  readonly #bias
  readonly #count
  readonly #repetition
  readonly #frequency
  readonly #presence
  readonly #newest
  readonly #maskRow
  readonly #masks
  readonly #words: number
  #used = 0
  #masked = 0

  /** capacity: edits of all rows together. previous: ids of the step before. */
  constructor(device: Device, outputs: number, capacity: number, vocab: number, previous: I32) {
    this.#words = Math.ceil(vocab / 32)
    this.#start = i32(device, outputs + 1)
    this.#ids = i32(device, capacity)
    this.#bias = f32(device, capacity)
    this.#count = i32(device, capacity)
    this.#repetition = f32(device, outputs)
    this.#frequency = f32(device, outputs)
    this.#presence = f32(device, outputs)
    this.#newest = i32(device, outputs)
    this.#maskRow = i32(device, outputs)
    this.#masks = i32(device, outputs, this.#words)
    this.edits = {
      start: this.#start.device,
      ids: this.#ids.device,
      bias: this.#bias.device,
      count: this.#count.device,
      repetition: this.#repetition.device,
      frequency: this.#frequency.device,
      presence: this.#presence.device,
      newest: this.#newest.device,
      maskRow: this.#maskRow.device,
      masks: this.#masks.device,
      previous,
    }
  }

  /** Before the first row. */
  clear(): void {
    this.#used = 0
    this.#masked = 0
  }

  /** A row without rules. */
  plain(row: number): void {
    this.#begin(row, 1, 0, 0)
  }

  /** The row of the token at `position`. newest: the row of the step before with the token that is not in `tokens` yet, or -1. */
  put(row: number, rules: TokenRules, tokens: readonly number[], promptLength: number, position: number, newest: number): void {
    const { repetition, frequency, presence, minTokens, stopTokens, mask } = rules.options
    this.#begin(row, repetition, frequency, presence)
    this.#newest.host[row] = newest
    const early = position - promptLength < minTokens
    for (const [id, { bias, count }] of rules.edits(tokens, promptLength)) {
      this.#add(id, early && stopTokens.has(id) ? Number.NEGATIVE_INFINITY : bias, count)
    }
    if (early) {
      for (const id of stopTokens) if (!rules.edits(tokens, promptLength).has(id)) this.#add(id, Number.NEGATIVE_INFINITY, -1)
    }
    if (mask?.mask) {
      this.#maskRow.host[row] = this.#masked
      this.#masks.host.set(mask.mask.subarray(0, this.#words), this.#masked++ * this.#words)
    }
  }

  /** Enqueues the writes of so many rows. */
  write(rows: number): void {
    this.#start.host[rows] = this.#used
    this.#start.write(rows + 1)
    for (const edits of [this.#ids, this.#bias, this.#count]) edits.write(this.#used)
    for (const row of [this.#repetition, this.#frequency, this.#presence, this.#newest, this.#maskRow]) row.write(rows)
    this.#masks.write(this.#masked * this.#words)
  }

  #begin(row: number, repetition: number, frequency: number, presence: number): void {
    this.#start.host[row] = this.#used
    this.#repetition.host[row] = repetition
    this.#frequency.host[row] = frequency
    this.#presence.host[row] = presence
    this.#newest.host[row] = -1
    this.#maskRow.host[row] = -1
  }

  #add(id: number, bias: number, count: number): void {
    this.#ids.host[this.#used] = id
    this.#bias.host[this.#used] = bias
    this.#count.host[this.#used++] = count
  }
}
