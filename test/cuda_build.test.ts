// What nvcc said about the kernels, which npm test builds where there is one: no spills, no
// serialisation, few instantiations, a small library. Prints a table.
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { blocksFor, launches, shortName } from './kernel_launches.ts'

const folder = join(packageRoot, 'build/cuda')
const library = join(folder, 'Release/cria_cuda.so')

interface Kernel {
  readonly name: string
  readonly arch: string
  readonly registers: number
  readonly spilled: number
  /** Bytes of local memory: arrays that are not in registers. */
  readonly stack: number
  /** Bytes of shared memory that its code has, besides what the launch gives. */
  readonly shared: number
}

function kernels(log: string): Kernel[] {
  const entries = log.split(/Compiling entry function '/).slice(1)
  const names = execFileSync(
    'c++filt',
    entries.map(entry => entry.slice(0, entry.indexOf("'"))),
  )
    .toString()
    .split('\n')
  return entries.map((entry, i) => ({
    name: shortName(names[i]!),
    arch: entry.match(/for '(sm_\w+)'/)![1]!,
    registers: Number(entry.match(/Used (\d+) registers/)![1]),
    spilled: Number(entry.match(/(\d+) bytes spill stores/)![1]),
    stack: Number(entry.match(/(\d+) bytes stack frame/)![1]),
    shared: Number(entry.match(/(\d+) bytes smem/)?.[1] ?? 0),
  }))
}

const there = existsSync(library)
const define = there ? describe : describe.skip
define(there ? 'the CUDA plug-in' : 'the CUDA plug-in: not built here; npm test builds it where nvcc 13 is', () => {
  const logs = there ? readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.o.log')) : []
  const read = (names: string[]) => names.map(name => readFileSync(join(folder, name), 'utf8')).join('\n')
  const log = read(logs)

  test('no kernel spills, for no architecture; the table', async () => {
    const all = kernels(read(logs.filter(name => name.includes('cria_cuda.dir')))) // the probe of test/ptx has others
    const architectures = [...new Set(all.map(kernel => kernel.arch))]
    const started = await launches()
    const rows = [...new Set(all.map(kernel => kernel.name))].sort().map(name => {
      const launch = started.get(name)
      const cells = architectures.map(arch => {
        const kernel = all.find(one => one.name === name && one.arch === arch)
        if (!kernel || kernel.registers < 8) return '-' // empty: it has instructions of other architectures
        if (!launch) return `${kernel.registers}`
        return `${kernel.registers} x${blocksFor(arch, kernel.registers, launch.threads, launch.shared + kernel.shared)}`
      })
      const [threads, shared] = launch ? [String(launch.threads), (launch.shared / 1024).toFixed(1)] : ['-', '-']
      return `${name.padEnd(52)}${[threads, shared, ...cells].map(cell => cell.padStart(9)).join('')}`
    })
    const title = 'registers of a thread, x blocks a multiprocessor'
    const head = [title.padEnd(52), ...['threads', 'KB', ...architectures].map(cell => cell.padStart(9))].join('')
    console.log([head, ...rows].join('\n'))
    // Every kernel that a layer of 8B starts is one of these, and fits on every architecture that it is for.
    for (const [name, { threads, shared }] of started) {
      const of = all.filter(kernel => kernel.name === name && kernel.registers >= 8)
      const full = of.filter(one => blocksFor(one.arch, one.registers, threads, shared + one.shared) < 1)
      expect({ name, compiled: of.length > 0, doesNotFit: full.map(({ arch }) => arch) }).toEqual({
        name,
        compiled: true,
        doesNotFit: [],
      })
    }
    expect(started.size).toBeGreaterThan(8)
    expect(all.filter(({ spilled }) => spilled > 0)).toEqual([])
    expect(all.filter(({ stack }) => stack > 32)).toEqual([]) // 32: of sinf for angles beyond 10^5
    expect(architectures.length).toBe(6)
    expect(rows.length).toBeGreaterThan(10)
    for (const arch of architectures) expect(all.filter(kernel => kernel.arch === arch).length).toBeLessThanOrEqual(100)
  })

  test('occupancy as the CUDA calculator has it', () => {
    expect(blocksFor('sm_80', 32, 1024, 0)).toBe(2)
    expect(blocksFor('sm_90a', 168, 384, 200 * 1024)).toBe(1)
    expect(blocksFor('sm_86', 64, 256, 48 * 1024)).toBe(2)
    expect(blocksFor('sm_89', 255, 128, 0)).toBe(2)
  })

  test('no setmaxnreg is ignored and no wgmma serialised', () => {
    expect(log.split('\n').filter(line => /C75(08|1[0-9])|wgmma.*serializ|warning/i.test(line))).toEqual([])
  })

  test('it takes less than four minutes to build', () => {
    const stamp = readFileSync(join(packageRoot, 'build/Release/.cuda-stamp'), 'utf8')
    const [, rest, seconds] = stamp.match(/ (\+?)(\d+)s$/)!
    if (rest) console.log(`${seconds} s for what had changed: the time of a whole build is not known`)
    else expect(Number(seconds)).toBeLessThan(240)
  })

  test('it is small and needs nothing of the toolkit', () => {
    expect(statSync(library).size).toBeLessThan(8e6)
    expect(execFileSync('ldd', [library]).toString()).not.toMatch(/cuda|cublas|nvrtc/)
  })
})
