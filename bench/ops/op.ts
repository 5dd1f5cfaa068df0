/** How the benchmark of an operation says what to time. */
import type { Recorder } from '../../binding.d.ts'
import type { Inputs } from '../inputs.ts'

/** Something to time: one operation with operands of one shape. */
export interface OpCase {
  /** 'qkv'; '' for the only one. */
  readonly name: string
  /** Appends the operation once; i counts, so that operands can take turns. */
  record(op: Recorder, i: number): unknown
  /** Where the lengths that decide are known only when it runs; else Program.cost is right. */
  readonly work?: { readonly bytes: number; readonly flops: number }
}

/** What to time of an operation with so many rows. */
export type OpBench = (inputs: Inputs, rows: number) => OpCase[]

/** More rows than this come from one sequence, fewer from as many sequences. */
export const mostSequences = 64

/** A step of so many rows: a token each of as many sequences of `length` tokens, or a prompt. */
export function stepOf(inputs: Inputs, rows: number, length: number) {
  return rows > mostSequences ? inputs.step(1, rows, rows) : inputs.step(rows, length, 1)
}
