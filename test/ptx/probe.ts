// Registers and memory through the instructions of native/machine/ptx, by native/tools/ptx_probe.cu: on the emulated machine
// with asynchronous copies early and late, and on the GPU where there is one. Each test has a reference of its own, written
// from the PTX ISA and not from the emulation.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from '@jest/globals'
import { devices } from '../../lib/native.ts'
import { packageRoot } from '../../lib/package.ts'
import { hash, Random } from '../ops/numbers.ts'

export type Words = Uint32Array<ArrayBuffer>

/** What memory that no kernel wrote is full of. */
export const unwritten = 0xeeeeeeee

const program = (machine: 'simt' | 'cuda') => join(packageRoot, 'build/Release', `ptx_probe_${machine}`)

function execute(machine: 'simt' | 'cuda', settings: string, args: readonly string[], input: Uint8Array): Buffer {
  const env = { ...process.env, CRIA_SIMT: [settings, process.env.CRIA_SIMT].filter(Boolean).join(',') }
  if (!existsSync(program(machine)))
    throw new Error(`there is no ${program(machine)}; node native/tools/setup.mjs --cuda=present builds it`)
  const { status, stdout, stderr, error } = spawnSync(program(machine), args, { input, env, maxBuffer: 2 ** 28 })
  if (error) throw error
  if (status !== 0) throw new Error(`ptx_probe_${machine} ${args.join(' ')}: exit code ${status}, ${stderr}`)
  return stdout
}

/** Words that must be equal; the place of the first difference. */
export function sameWords(found: Words, expected: ArrayLike<number>, what: string): void {
  if (found.length !== expected.length) throw new Error(`${what}: ${found.length} words, expected ${expected.length}`)
  const hex = (word: number) => `0x${word.toString(16).padStart(8, '0')}`
  for (let i = 0; i < found.length; i++)
    if (found[i] !== expected[i]) throw new Error(`${what}: word ${i} is ${hex(found[i]!)}, expected ${hex(expected[i]!)}`)
}

/** One case of the probe on one machine. */
export class Probe {
  readonly #case: string
  readonly #machine: 'simt' | 'cuda'
  readonly #settings: string
  readonly random: Random

  constructor(name: string, machine: 'simt' | 'cuda', settings: string, random: Random) {
    this.#case = name
    this.#machine = machine
    this.#settings = settings
    this.random = random
  }

  words(count: number): Words {
    return Uint32Array.from({ length: count }, () => this.random.u32())
  }

  /** What the instruction makes of the input. */
  run(input: Words, ...numbers: number[]): Words {
    return this.#run(this.#machine, this.#settings, input, numbers)
  }
  /** The same for what every machine must do alike, to the bit: a GPU is compared with the emulated machine as well. */
  exact(input: Words, ...numbers: number[]): Words {
    const found = this.run(input, ...numbers)
    if (this.#machine === 'cuda') sameWords(found, this.#run('simt', '', input, numbers), 'the GPU against the emulated machine')
    return found
  }
  #run(machine: 'simt' | 'cuda', settings: string, input: Words, numbers: readonly number[]): Words {
    const out = execute(machine, settings, [this.#case, ...numbers.map(String)], new Uint8Array(input.buffer))
    return new Uint32Array(new Uint8Array(out).buffer)
  }
}

const gpu = devices().find(({ device }) => device === 'cuda:0')
/** Why there is nothing to be seen on a GPU: there is none, or it does not have the instruction. */
function reasonToSkip(name: string): string | undefined {
  if (!gpu?.available) return gpu?.reason ?? 'there is no GPU'
  if (!existsSync(program('cuda'))) return undefined // fails: it should have been built with the plug-in
  const lines = execute('cuda', '', ['--list'], new Uint8Array(0)).toString().split('\n')
  return lines.find(line => line.startsWith(`${name} `))?.slice(name.length + 1)
}

type Check = (title: string, body: (probe: Probe) => void) => void

/** Runs the checks of a case of the probe on every machine. A failure tells its seed; CRIA_SEED replays it. */
export function probes(name: string, define: (check: Check) => void): void {
  const on = (where: string, machine: 'simt' | 'cuda', settings: string) =>
    describe(`${name} on ${where}`, () =>
      define((title, body) =>
        test(title, () => {
          const seed = Number(process.env.CRIA_SEED ?? hash(`${name} ${title} ${settings}`))
          try {
            body(new Probe(name, machine, settings, new Random(seed)))
          } catch (error) {
            if (error instanceof Error) error.message += ` (CRIA_SEED=${seed})`
            throw error
          }
        }),
      ))
  for (const settings of ['seed=1,copies=early', 'seed=2,copies=late', 'seed=3,copies=late'])
    on(`simt ${settings}`, 'simt', settings)
  const reason = reasonToSkip(name)
  if (reason === undefined) on('cuda:0', 'cuda', '')
  else test.skip(`${name} on cuda: ${reason}`, () => {})
}
