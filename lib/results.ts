/** What a step is asked for, and what comes out of its rows. */
import type { Device, DeviceTensor } from '../binding.d.ts'
import type { StepOutputs, StepSize } from './programs.ts'
import type { Work } from './scheduler.ts'
import type { Sequence } from './sequence.ts'

/** A token and its natural log-probability. */
export interface TokenLogprob {
  readonly id: number
  readonly logprob: number
}

/** Of the rows of a step that went through the head. */
export interface Results {
  readonly ids: Int32Array
  readonly logprobs: Float32Array
  readonly status: Int32Array
  /** [rows, 20], if they were asked for */
  readonly topIds?: Int32Array
  readonly top?: Float32Array
}
/** Of Logprobs.top. */
const mostTop = 20

/** What a program needs to have for this work. */
export function sizeOf(work: readonly Work[]): StepSize & { readonly rows: number } {
  const size = { tokens: 0, rows: 0, edits: undefined as number | undefined, scores: false }
  for (const { sequence, from, to, rows, samples } of work) {
    const { rules, top } = sequence.sampling
    size.tokens += to - from
    size.rows += rows
    if (rules && samples) size.edits = (size.edits ?? 0) + rules.see(sequence.tokens, sequence.promptLength).room
    if (rows > 0 && (top || sequence.options.scoresPrompt)) size.scores = true
  }
  return size
}

/** The most probable tokens of a row, as many as the sequence asks for. */
export function topOf({ sampling }: Sequence, { topIds, top }: Results, row: number): TokenLogprob[] {
  const tokens: TokenLogprob[] = []
  if (!topIds || !top || !sampling.top) return tokens
  for (let i = row * mostTop; i < row * mostTop + sampling.top; i++) tokens.push({ id: topIds[i]!, logprob: top[i]! })
  return tokens
}

/** Resolves when the step has run. */
export async function readResults(
  device: Device,
  outputs: StepOutputs,
  size: StepSize & { readonly rows: number },
): Promise<Results> {
  const { scores } = size
  const rows = Math.max(size.rows, 1) // none in the middle of a prompt, but the step has to be waited for
  const read = <V extends ArrayBufferView>(from: DeviceTensor, into: V): Promise<V> => {
    const result = device.read(from, into)
    result.catch(() => {}) // if one of them throws at once, nobody waits for the others
    return result
  }
  const [ids, logprobs, status, topIds, top] = await Promise.all([
    read(outputs.ids, new Int32Array(rows)),
    read(outputs.chosen ?? outputs.logprobs, new Float32Array(rows)),
    read(outputs.status, new Int32Array(rows)),
    scores ? read(outputs.topIds!, new Int32Array(rows * mostTop)) : undefined,
    scores ? read(outputs.top!, new Float32Array(rows * mostTop)) : undefined,
  ])
  return { ids, logprobs, status, ...(topIds && top && { topIds, top }) }
}
