/** The work of a batch -> StepInputs and Sampling: the host's side of what changes from step to step. */
import type { Device, I32, Sampling, StepInputs } from '../binding.d.ts'
import { EditBuffers } from './edits.ts'
import { f32, i32, Places, u32 } from './mirror.ts'
import type { SamplingParameters } from './sampling.ts'
import type { Work } from './scheduler.ts'
import type { Sequence } from './sequence.ts'

/** The sizes that one recorded program has room for. */
export interface Bucket {
  readonly tokens: number
  readonly seqs: number
  /** Rows through the head. */
  readonly outputs: number
  /** Pages of one sequence. */
  readonly maxPages: number
  /** Whether log-probabilities of more than the sampled tokens are asked for. */
  readonly scores?: boolean
  /** Edits of logits of all rows together; absent: rows are taken as they are. */
  readonly edits?: { readonly room: number; readonly vocab: number } | undefined
}

/** The inputs of one program. Host arrays are filled for a batch, and what is new of them is written to the device. */
export class StepBuffers {
  readonly bucket: Bucket
  readonly step: StepInputs
  readonly sampling: Sampling
  /** Ids whose log-probability is asked for, instead of that of the sampled one; with scores. */
  readonly given: I32 | undefined
  readonly edits: EditBuffers | undefined
  readonly #tokens
  readonly #source
  readonly #positions
  readonly #slots
  readonly #queryStart
  readonly #kvLength
  readonly #pageTable
  readonly #outputs
  readonly #temperature
  readonly #topP
  readonly #minP
  readonly #topK
  readonly #seed
  readonly #position
  readonly #given
  /** What the rows of the page table, and of the sampling parameters, are. */
  readonly #tabled: { sequence: Sequence; version: number; pages: number }[] = []
  /** Entries of the page table that have changed; if it is blank, none of it is on the device. */
  readonly #entries = new Places()
  #blank = true
  readonly #sampled: SamplingParameters[] = []

  /** sampled: where each step leaves its ids, and the next one finds them. */
  constructor(device: Device, bucket: Bucket, sampled?: I32) {
    const { tokens, seqs, outputs, maxPages, scores, edits } = bucket
    this.bucket = bucket
    this.#tokens = i32(device, tokens)
    this.#source = i32(device, tokens)
    this.#positions = i32(device, tokens)
    this.#slots = i32(device, tokens)
    this.#queryStart = i32(device, seqs + 1)
    this.#kvLength = i32(device, seqs)
    this.#pageTable = i32(device, seqs, maxPages)
    this.#outputs = i32(device, outputs)
    this.#temperature = f32(device, outputs)
    this.#topP = f32(device, outputs)
    this.#minP = f32(device, outputs)
    this.#topK = i32(device, outputs)
    this.#seed = u32(device, outputs, 2)
    this.#position = i32(device, outputs)
    this.#given = scores ? i32(device, outputs) : undefined
    this.given = this.#given?.device
    if (edits && sampled) this.edits = new EditBuffers(device, outputs, edits.room, edits.vocab, sampled)
    this.step = {
      tokens: this.#tokens.device,
      source: this.#source.device,
      positions: this.#positions.device,
      slots: this.#slots.device,
      queryStart: this.#queryStart.device,
      kvLength: this.#kvLength.device,
      pageTable: this.#pageTable.device,
      outputs: this.#outputs.device,
      ...(sampled && { previous: sampled }),
    }
    this.sampling = {
      temperature: this.#temperature.device,
      topP: this.#topP.device,
      minP: this.#minP.device,
      topK: this.#topK.device,
      seed: this.#seed.device,
      position: this.#position.device,
      ...(sampled && { sampled }),
    }
  }

  /** Enqueues the writes for a batch; its sequences learn in which row their next token will be. */
  writeBatch(batch: readonly Work[], pageSize: number): void {
    let row = 0
    let out = 0
    let samplingChanged = false
    this.edits?.clear()
    if (this.#blank) {
      this.#pageTable.host.fill(-1)
      this.#tabled.length = 0
    }
    for (const [s, work] of batch.entries()) {
      const { sequence, from, to, guesses, rows, samples } = work
      const { tokens, sampling } = sequence
      for (let position = from; position < to; position++, row++) {
        const guess = guesses[position - (to - guesses.length)]
        // A token that has not been read yet is taken from the step before.
        this.#source.host[row] = guess === undefined && position >= tokens.length ? sequence.row : -1
        this.#tokens.host[row] = guess ?? tokens[position] ?? 0
        this.#place(row, position, sequence.pages, pageSize)
      }
      this.#queryStart.host[s + 1] = row
      this.#kvLength.host[s] = to
      this.#tabulate(s, sequence)
      for (let i = rows; i > 0; i--, out++) {
        const position = to - i + 1 // of the token that this row is about
        this.#outputs.host[out] = row - i
        this.#position.host[out] = position
        if (this.#given) this.#given.host[out] = position < sequence.promptLength ? tokens[position]! : -1
        if (sampling.rules && samples && i === 1) {
          const newest = position > tokens.length ? sequence.row : -1
          this.edits?.put(out, sampling.rules, tokens, sequence.promptLength, position, newest)
        } else {
          this.edits?.plain(out)
        }
        if (this.#sampled[out] === sampling) continue
        this.#sampleAs(out, sampling)
        samplingChanged = true
      }
      sequence.row = out - 1
    }
    this.#write(row, batch.length, out)
    const entries = this.#entries.take()
    if (this.#blank) this.#pageTable.write(this.#pageTable.host.length)
    else this.#pageTable.writeAt(entries)
    this.#blank = false
    if (samplingChanged) this.#writeSampling(out)
    this.#position.write(out)
    this.#given?.write(out)
    this.edits?.write(out)
  }

  /** A write has failed: nothing is known of what is on the device. */
  forget(): void {
    this.#blank = true
    this.#sampled.length = 0
    this.edits?.forget()
  }

  /** Tokens [from, to) of one sequence; every row goes through the head. */
  writeEvaluation(tokens: readonly number[], from: number, to: number, pages: readonly number[], pageSize: number): void {
    for (let position = from, row = 0; position < to; position++, row++) {
      this.#tokens.host[row] = tokens[position]!
      this.#source.host[row] = -1
      this.#place(row, position, pages, pageSize)
      this.#outputs.host[row] = row
    }
    this.#queryStart.host[1] = to - from
    this.#kvLength.host[0] = to
    this.#pageTable.host.fill(-1)
    this.#pageTable.host.set(pages)
    this.#write(to - from, 1, to - from)
    this.#pageTable.write(this.bucket.maxPages)
  }

  #place(row: number, position: number, pages: readonly number[], pageSize: number): void {
    this.#positions.host[row] = position
    this.#slots.host[row] = pages[Math.floor(position / pageSize)]! * pageSize + (position % pageSize)
  }

  #tabulate(s: number, sequence: Sequence): void {
    const { pages, version } = sequence
    const before = this.#tabled[s]
    if (before?.sequence === sequence && before.version === version) return
    const { host } = this.#pageTable
    const first = s * this.bucket.maxPages
    for (let i = Math.max(pages.length, before?.pages ?? 0) - 1; i >= 0; i--) {
      const page = pages[i] ?? -1
      if (host[first + i] === page) continue
      host[first + i] = page
      this.#entries.add(first + i)
    }
    this.#tabled[s] = { sequence, version, pages: pages.length }
  }

  #sampleAs(out: number, sampling: SamplingParameters): void {
    this.#sampled[out] = sampling
    this.#temperature.host[out] = sampling.temperature
    this.#topP.host[out] = sampling.topP
    this.#minP.host[out] = sampling.minP
    this.#topK.host[out] = sampling.topK
    this.#seed.host.set(sampling.seed, out * 2)
  }

  /** Rows beyond these are dead: the last entry of queryStart and the first -1 of outputs say so. */
  #write(rows: number, seqs: number, outputs: number): void {
    for (const mirror of [this.#tokens, this.#source, this.#positions, this.#slots]) mirror.write(rows)
    this.#queryStart.host.fill(rows, seqs + 1)
    this.#queryStart.write(this.bucket.seqs + 1)
    this.#kvLength.write(seqs)
    if (outputs < this.bucket.outputs) this.#outputs.host[outputs] = -1
    this.#outputs.write(Math.min(outputs + 1, this.bucket.outputs))
  }

  #writeSampling(outputs: number): void {
    for (const mirror of [this.#temperature, this.#topP, this.#minP, this.#topK]) mirror.write(outputs)
    this.#seed.write(2 * outputs)
  }
}
