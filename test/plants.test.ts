// Bugs that engines like this one have had, planted one at a time as the sources are read: some test must fail.
// Those of kernels are in plants_native.test.ts.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { answerPlants, type Plant } from './plants_answers.ts'
import { runJest } from './run_jest.ts'

const pages = 'test/lib/pages'
const scheduler = 'test/lib/scheduler'
const fake = 'test/lib/engine_fake'
const same = 'the same answer'
const failures = 'test/lib/engine_failures'
const answers = 'test/lib/answers'
const generation = 'test/lib/generation'
const step = 'test/lib/step'
const edits = 'test/lib/edits'

const plants: readonly Plant[] = [
  ...answerPlants,
  // Pages
  ['a hash without its parent', 'lib/pages.ts', 'let key = `', 'let key = ``; void `', pages],
  ['a hash without the last token', 'lib/pages.ts', 'i < at + this.size; i++', 'i < at + this.size - 1; i++', pages],
  [
    'a double free that nobody notices',
    'lib/pages.ts',
    'if (!(this.#users[page]! > 0)) {\n        for',
    'if (!(this.#users[page]! > -9)) {\n        for',
    pages,
  ],
  [
    'eviction of what was used last',
    'lib/pages.ts',
    'of this.#idle) {\n      if',
    'of [...this.#idle].reverse()) {\n      if',
    pages,
  ],
  ['an evicted page is still known', 'lib/pages.ts', 'this.#known.delete(key)', '', pages],
  [
    'a chain is forgotten from its beginning',
    'lib/pages.ts',
    'let i = pages.length - 1; i >= 0; i--',
    'let i = 0; i < pages.length; i++',
    pages,
  ],
  ['a found page has no user more', 'lib/pages.ts', 'is free`)\n      this.#use(page)', 'is free`)', pages],
  [
    'the duplicate of a known page is never given back',
    'lib/pages.ts',
    'this.#use(known)\n      this.release([page])',
    'this.#use(known)',
    pages,
  ],
  [
    'what was found is believed when the page has another content',
    'lib/pages.ts',
    'this.#chains[pages[n]!] === chains[n]',
    'true',
    pages,
  ],
  ["pages with two users count as one's own", 'lib/pages.ts', 'this.#users[page]! > 1', 'this.#users[page]! > 2', scheduler],
  // Scheduler
  ['no copy on write', 'lib/scheduler.ts', 'page !== undefined && this.#pages.isShared(page)', 'false', scheduler],
  ['copy on write the wrong way', 'lib/scheduler.ts', 'batch.copy(shared, own!)', 'batch.copy(own!, shared)', scheduler],
  [
    'a fully cached prompt computes nothing',
    'lib/scheduler.ts',
    'pages.length * this.#pages.size, length - 1',
    'pages.length * this.#pages.size, length',
    scheduler,
  ],
  [
    'a preempted sequence keeps its pages',
    'lib/scheduler.ts',
    '#drop(sequence: Sequence): void {\n    this.#pages.release(sequence.pages)',
    '#drop(sequence: Sequence): void {',
    scheduler,
  ],
  [
    'work of before a preemption is believed',
    'lib/scheduler.ts',
    'if (work.epoch !== sequence.epoch) return tokens',
    '',
    scheduler,
  ],
  ['pages are shared before they are full', 'lib/scheduler.ts', '(i + 1) * size <= settled', 'i * size <= settled', scheduler],
  [
    'pages are shared before they are computed',
    'lib/scheduler.ts',
    'sequence.settled = work.samples ? sequence.tokens.length - 1 : work.to',
    'sequence.settled = sequence.tokens.length',
    scheduler,
  ],
  [
    'a prompt takes the tokens of those that generate',
    'lib/scheduler.ts',
    'return this.#left - this.reserved',
    'return this.#left',
    scheduler,
  ],
  ['who came last goes first', 'lib/line.ts', 'a.arrival < b.arrival', 'a.arrival > b.arrival', scheduler],
  [
    'the first in order is preempted',
    'lib/scheduler.ts',
    'const { last } = this.#running\n',
    'const last = this.#running.at(0)\n',
    scheduler,
  ],
  [
    'priorities without bound',
    'lib/scheduler.ts',
    '(sequence.options.priority ?? 0) * overtakes',
    '(sequence.options.priority ?? 0) * 1e9',
    scheduler,
  ],
  [
    'the prompt of a leader is shared before it is computed',
    'lib/scheduler.ts',
    'leader.settled >= promptLength',
    'leader.settled > 0',
    scheduler,
  ],
  [
    "a leader's own tokens count as its prompt",
    'lib/scheduler.ts',
    'Math.min(leader!.published, Math.floor(led / this.#pages.size))',
    'leader!.published',
    scheduler,
  ],
  [
    'pages that one begins with count as free',
    'lib/scheduler.ts',
    'if (this.#pages.users(page) === 0) available--',
    'if (false) available--',
    scheduler,
  ],
  [
    'pages that others keep count as free',
    'lib/scheduler.ts',
    '++lost[page]! === this.#pages.users(page)',
    '++lost[page]! > 0',
    scheduler,
  ],
  ['what is not ready is sampled', 'lib/scheduler.ts', 'ready?.() === false ? sequence.pending - 1', 'false ? 0', scheduler],
  ['guesses take no rows', 'lib/scheduler.ts', 'this.moreRows -= guesses.length', '', scheduler],
  [
    'guesses are not verified',
    'lib/scheduler.ts',
    'while (tokens.at(-1) === guesses[tokens.length - 1])',
    'while (tokens.length <= guesses.length)',
    scheduler,
  ],
  [
    'guesses that came true are computed again, elsewhere',
    'lib/scheduler.ts',
    'sequence.computed += tokens.length - 1',
    'sequence.computed += 0',
    scheduler,
  ],
  [
    'one sequence too many',
    'lib/scheduler.ts',
    'this.#running.size < this.#limits.maxSequences',
    'this.#running.size <= this.#limits.maxSequences',
    scheduler,
  ],
  ['those behind overtake the first who waits', 'lib/scheduler.ts', 'admit = false // nobody', 'w++ // nobody', scheduler],
  ['in lockstep, but ahead', 'lib/scheduler.ts', '!(ahead > 0 && (lockstep || guess))', 'true', scheduler],
  ['one token too many', 'lib/scheduler.ts', 'generated + ahead < maxTokens', 'generated < maxTokens', scheduler],
  // Steps
  ['a stale page table', 'lib/step.ts', ' && before.version === version', '', fake, same],
  [
    'the pages of who was in this row before',
    'lib/step.ts',
    'before?.sequence === sequence && before.version',
    'before?.version',
    step,
  ],
  [
    'pages of a longer sequence behind those of a row',
    'lib/step.ts',
    'Math.max(pages.length, before?.pages ?? 0)',
    'pages.length',
    step,
  ],
  [
    'a page table is believed after a write has failed',
    'lib/step.ts',
    'this.#blank = true\n    this.#sampled',
    'this.#sampled',
    step,
  ],
  ['a key less is seen', 'lib/step.ts', 'this.#kvLength.host[s] = to', 'this.#kvLength.host[s] = to - 1', fake, same],
  [
    'positions one off',
    'lib/step.ts',
    'this.#positions.host[row] = position',
    'this.#positions.host[row] = position + 1',
    fake,
    same,
  ],
  [
    'the next page a token early',
    'lib/step.ts',
    'pages[Math.floor(position / pageSize)]!',
    'pages[Math.floor((position + 1) / pageSize)] ?? pages.at(-1)!',
    fake,
    same,
  ],
  [
    'the token of another row of the step before',
    'lib/step.ts',
    'position >= tokens.length ? sequence.row : -1',
    'position >= tokens.length ? s : -1',
    fake,
    same,
  ],
  [
    'the row before the last is sampled',
    'lib/step.ts',
    'this.#outputs.host[out] = row - i',
    'this.#outputs.host[out] = Math.max(0, row - i - 1)',
    fake,
    same,
  ],
  [
    'random numbers of the position before',
    'lib/step.ts',
    'this.#position.host[out] = position',
    'this.#position.host[out] = position - 1',
    fake,
    same,
  ],
  [
    'the settings of who was in this row before',
    'lib/step.ts',
    'if (this.#sampled[out] === sampling) continue',
    'if (this.#sampled[out]) continue',
    fake,
    same,
  ],
  ['rows of the step before are alive', 'lib/step.ts', 'this.#queryStart.host.fill(rows, seqs + 1)', '', fake, same],
  // Edits of logits
  ['what was seen since the last step is not written', 'lib/edits.ts', 'i = region.seen; i <', 'i = seen.length; i <', edits],
  ['stop tokens are held back for ever', 'lib/edits.ts', 'slot < stops && early !== region.early', 'slot < 0', edits],
  ['edits in the region of others', 'lib/edits.ts', 'ids.length <= region.room', 'ids.length <= region.room + 1', edits],
  [
    'regions made anew are forgotten by the rows before',
    'lib/edits.ts',
    '(!this.#placeAll(rows)) throw',
    '(!this.#place(rows - 1)) throw',
    edits,
  ],
  [
    'edits are believed after a write has failed',
    'lib/edits.ts',
    'this.#rules.length = 0\n    this.#makeAnew()',
    'this.#rules.length = 0',
    edits,
  ],
  [
    'the penalties of who was in this row before',
    'lib/edits.ts',
    'if (this.#rules[row] === rules) return',
    'if (this.#rules[row]) return',
    edits,
  ],
  // Engine
  ['an abort frees no pages', 'lib/engine.ts', 'this.#scheduler.remove(sequence)', '', failures, 'of a request'],
  ['a row that is not finite is drawn from', 'lib/engine.ts', 'results.status[first + i] !== 0', 'false', failures],
  ['nobody waits for a mask', 'lib/engine.ts', 'await this.#masked(next.work)', '', fake, 'that come soon'],
  ['everybody waits for a slow mask', 'lib/engine.ts', 'began < patience &&', 'began < 9999 &&', fake, 'that come soon'],
  ['a queue without end', 'lib/engine.ts', 'this.#scheduler.waiting + before >= maxQueue + places', 'false', failures],
  [
    'a step that was not enqueued is waited for',
    'lib/engine.ts',
    'for (const { sequence } of work) this.#finish(sequence)?.fail(error as Error)',
    '',
    failures,
  ],
  [
    'tokens after a stop among guesses',
    'lib/engine.ts',
    'sequence.tokens.length -= tokens.length',
    'if (tokens.length > 0) sequence.tokens.length -= 1',
    answers,
  ],
  ['penalties forget the newest token', 'lib/step.ts', 'position > tokens.length ? sequence.row : -1', '-1', answers],
  // Text
  [
    'a beginning of a stop string leaks',
    'lib/stops.ts',
    'const certain = all.length - (this.#state.length ||',
    'const certain = all.length - (0 ||',
    'test/lib/stops',
  ],
  [
    'a stop string that begins inside of another is not found',
    'lib/stops.ts',
    'node.fallback ? this.#step(node.fallback, unit) : this.#root',
    'this.#root',
    'test/lib/stops',
  ],
  [
    'half a character comes out',
    'lib/detokenizer.ts',
    'const whole = bytes.length - unfinished(bytes)',
    'const whole = bytes.length',
    'test/lib/detokenizer',
  ],
  [
    'two tokens begin the prompt',
    'lib/llama.ts',
    '[bos, ...tokens]',
    '[bos, bos, ...tokens]',
    generation,
    'by text and by tokens',
  ],
  ['every answer of several is the same', 'lib/llama.ts', 'BigInt(seed) + BigInt(i)', 'BigInt(seed)', answers],
]

/** Runs tests with a bug planted; the exit code. */
async function run([, file, find, replace, tests, only]: Plant): Promise<number | null> {
  const args = [`${tests}.test.ts`, ...(only ? ['-t', only] : []), '--bail', '--testTimeout=20000']
  return (await runJest(args, { CRIA_PLANT: JSON.stringify({ file, find, replace }), CRIA_BAIL: '1' }, 100_000)).code
}

describe('a planted bug is found:', () => {
  test.concurrent.each(plants)(
    '%s',
    async (...plant) => {
      const [name, file, find] = plant
      expect(readFileSync(join(packageRoot, file), 'utf8').split(find)).toHaveLength(2)
      expect({ name, found: (await run(plant)) !== 0 }).toEqual({ name, found: true })
    },
    300_000,
  )
})
