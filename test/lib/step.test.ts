// What of the page table is on the device after any steps, and how much of it a step writes.
import { expect, test } from '@jest/globals'
import { Sequence } from '../../lib/sequence.ts'
import { StepBuffers } from '../../lib/step.ts'
import { greedy, random } from './fake_model.ts'
import { dataOf, Memory } from './memory_device.ts'

const [seqs, maxPages, pageSize] = [6, 40, 4]
const of = random(4)
const buffersOn = (memory: Memory) => new StepBuffers(memory.device, { tokens: seqs, seqs, outputs: seqs, maxPages })
const pagesOf = (count: number) => Array.from({ length: count }, () => of(1000))

function someone(pages: number): Sequence {
  const sequence = new Sequence([1], 9, greedy)
  sequence.pages = pagesOf(pages)
  return sequence
}
/** The last token of the last page of each. */
function write(buffers: StepBuffers, batch: readonly Sequence[]): void {
  const work = batch.map(sequence => {
    const to = sequence.pages.length * pageSize
    return { sequence, from: to - 1, to, rows: 1, samples: true, guesses: [], epoch: 0 }
  })
  buffers.writeBatch(work, pageSize)
}
const tableOf = (buffers: StepBuffers, s: number) => [
  ...dataOf(buffers.step.pageTable).subarray(s * maxPages, (s + 1) * maxPages),
]
const rowOf = ({ pages }: Sequence) => [...pages, ...new Array<number>(maxPages - pages.length).fill(-1)]

test('the page table is that of the sequences, whatever they were before, in two programs, with writes that fail', () => {
  const memory = new Memory()
  const programs = [buffersOn(memory), buffersOn(memory)]
  let batch: Sequence[] = []
  let failed = 0
  for (let step = 0; step < 3000; step++) {
    batch = batch.filter(() => of(10) > 0)
    while (batch.length < 1 + of(seqs)) batch.splice(of(batch.length + 1), 0, someone(1 + of(maxPages)))
    for (const sequence of batch) {
      if (of(4) > 0) continue
      sequence.version++
      const { pages } = sequence
      const change = of(3)
      if (change === 0 && pages.length < maxPages) pages.push(of(1000))
      else if (change === 1) pages[of(pages.length)] = of(1000)
      else sequence.pages = pagesOf(1 + of(maxPages))
    }
    const buffers = programs[of(3) === 0 ? 1 : 0]!
    if (of(20) === 0) memory.failsAfter = of(15)
    try {
      write(buffers, batch)
      expect(batch.map((_, s) => tableOf(buffers, s))).toEqual(batch.map(rowOf))
    } catch (error) {
      if ((error as Error).message !== 'a write fails') throw error
      failed++
      buffers.forget()
    }
    memory.failsAfter = Number.POSITIVE_INFINITY
  }
  expect(failed).toBeGreaterThan(50)
})

test('a page more is one number more', () => {
  const memory = new Memory()
  const buffers = buffersOn(memory)
  const batch = Array.from({ length: seqs }, () => someone(20))
  const written = () => {
    memory.written = 0
    write(buffers, batch)
    return memory.written
  }
  written()
  const usual = written()
  expect(usual).toBeLessThan(10 * seqs)
  for (const sequence of batch) {
    sequence.pages.push(7)
    sequence.version++
  }
  expect(written()).toBe(usual + seqs)
})
