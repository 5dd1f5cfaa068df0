/** What requests change in the logits before a token is drawn: penalties, biases, masks; and the buffers they travel in. */
import type { Device, Edits, I32 } from '../binding.d.ts'
import { f32, i32, Places } from './mirror.ts'

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

/** The rules of one sequence, and what they have seen of it: edits of single tokens, a slot each. Pure. */
export class TokenRules {
  readonly options: RuleOptions
  /** Of each slot: a token, what is added to its logit, how often it was generated; 0: in the prompt only, -1: never seen. */
  readonly ids: number[] = []
  readonly bias: number[] = []
  readonly count: number[] = []
  /** Slots of the tokens that were seen, in their order. */
  readonly seen: number[] = []
  /** Stop tokens that may have to wait have the first slots, so many. */
  readonly stops: number
  readonly #slots = new Map<number, number>()
  readonly #counts: boolean

  constructor(options: RuleOptions) {
    const { repetition, frequency, presence, bias, minTokens, stopTokens } = options
    this.options = options
    this.#counts = repetition !== 1 || frequency !== 0 || presence !== 0
    if (minTokens > 0) for (const id of stopTokens) this.#slot(id)
    this.stops = this.ids.length
    for (const [id, value] of bias) this.bias[this.#slot(id)] = value
  }

  /** Takes in the tokens that are known since the last time. */
  see(tokens: readonly number[], promptLength: number): this {
    for (let i = this.seen.length; this.#counts && i < tokens.length; i++) {
      const slot = this.#slot(tokens[i]!)
      this.count[slot] = Math.max(this.count[slot]!, 0) + (i < promptLength ? 0 : 1)
      this.seen.push(slot)
    }
    return this
  }

  /** For so many edits there should be room: for those that there are, and for a quarter more if tokens bring new ones. */
  get room(): number {
    return this.#counts ? Math.ceil(1.25 * this.ids.length) + 32 : this.ids.length
  }

  #slot(id: number): number {
    const known = this.#slots.get(id)
    if (known !== undefined) return known
    this.#slots.set(id, this.ids.length)
    this.bias.push(0)
    this.count.push(-1)
    return this.ids.push(id) - 1
  }
}

/** Where the edits of some rules lie, and what is there: of so many tokens seen, with the stop tokens held back or not. */
interface Region {
  readonly from: number
  readonly room: number
  seen: number
  early: boolean
}

/**
 * The edits of one program's rows. Rules have a region of their own, whatever row they are in, and only what is new is
 * written. Regions follow each other; when there is no room after the last one, all are made anew.
 */
export class EditBuffers {
  readonly edits: Edits
  readonly #start
  readonly #end
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
  #regions = new WeakMap<TokenRules, Region>()
  #used = 0
  readonly #touched = new Places()
  /** Whose rows these are; null: nobody's, undefined: not known. And whether it is too early for their stop tokens. */
  readonly #rules: (TokenRules | null | undefined)[] = []
  readonly #early: boolean[] = []
  #penaltiesChanged = false
  #masked = 0

  /** capacity: edits of all rows together, at least the sum of their `room`. previous: ids of the step before. */
  constructor(device: Device, outputs: number, capacity: number, vocab: number, previous: I32) {
    this.#words = Math.ceil(vocab / 32)
    this.#start = i32(device, outputs)
    this.#end = i32(device, outputs)
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
      end: this.#end.device,
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
    this.#masked = 0
  }

  /** A row without rules. */
  plain(row: number): void {
    this.#begin(row, null, -1)
  }

  /** The row of the token at `position`. newest: the row of the step before with the token that is not in `tokens` yet, or -1. */
  put(row: number, rules: TokenRules, tokens: readonly number[], promptLength: number, position: number, newest: number): void {
    const { minTokens, mask } = rules.options
    this.#begin(row, rules.see(tokens, promptLength), newest)
    this.#early[row] = position - promptLength < minTokens
    if (mask?.mask) {
      this.#maskRow.host[row] = this.#masked
      this.#masks.host.set(mask.mask.subarray(0, this.#words), this.#masked++ * this.#words)
    }
  }

  /** Enqueues the writes of so many rows. */
  write(rows: number): void {
    if (!this.#placeAll(rows)) {
      this.#makeAnew()
      if (!this.#placeAll(rows)) throw new Error(`the edits of ${rows} rows are more than the program has room for`)
    }
    const touched = this.#touched.take()
    for (const edits of [this.#ids, this.#bias, this.#count]) {
      if (2 * touched.length < this.#used) edits.writeAt(touched)
      else edits.write(this.#used)
    }
    for (const row of [this.#start, this.#end, this.#newest, this.#maskRow]) row.write(rows)
    if (this.#penaltiesChanged) for (const row of [this.#repetition, this.#frequency, this.#presence]) row.write(rows)
    this.#penaltiesChanged = false
    this.#masks.write(this.#masked * this.#words)
  }

  /** A write has failed: nothing is known of what is on the device. */
  forget(): void {
    this.#rules.length = 0
    this.#makeAnew()
  }

  #begin(row: number, rules: TokenRules | null, newest: number): void {
    this.#newest.host[row] = newest
    this.#maskRow.host[row] = -1
    if (this.#rules[row] === rules) return
    this.#rules[row] = rules
    this.#repetition.host[row] = rules?.options.repetition ?? 1
    this.#frequency.host[row] = rules?.options.frequency ?? 0
    this.#presence.host[row] = rules?.options.presence ?? 0
    this.#penaltiesChanged = true
  }

  #placeAll(rows: number): boolean {
    for (let row = 0; row < rows; row++) if (!this.#place(row)) return false
    return true
  }

  /** Brings the region of a row up to date; false: there is no room for it after the others. */
  #place(row: number): boolean {
    const rules = this.#rules[row]
    if (rules) {
      const { ids, seen, stops, room } = rules
      const early = this.#early[row]!
      let region = this.#regions.get(rules)
      if (region && ids.length <= region.room) {
        for (let i = region.seen; i < seen.length; i++) this.#touch(rules, seen[i]!, region.from, early)
        for (let slot = 0; slot < stops && early !== region.early; slot++) this.#touch(rules, slot, region.from, early)
        region.seen = seen.length
        region.early = early
      } else {
        if (this.#used + room > this.#ids.host.length) return false
        region = { from: this.#used, room, seen: seen.length, early }
        for (let slot = 0; slot < ids.length; slot++) this.#touch(rules, slot, region.from, early)
        this.#regions.set(rules, region)
        this.#used += room
      }
      this.#start.host[row] = region.from
    }
    this.#end.host[row] = rules ? this.#start.host[row]! + rules.ids.length : 0
    return true
  }

  #makeAnew(): void {
    this.#regions = new WeakMap()
    this.#used = 0
  }

  #touch({ ids, bias, count, stops }: TokenRules, slot: number, from: number, early: boolean): void {
    this.#ids.host[from + slot] = ids[slot]!
    this.#bias.host[from + slot] = early && slot < stops ? Number.NEGATIVE_INFINITY : bias[slot]!
    this.#count.host[from + slot] = count[slot]!
    this.#touched.add(from + slot)
  }
}
