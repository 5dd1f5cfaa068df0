// What nvcc said about the kernels, which npm test builds where there is one: no spills, no
// serialisation, few instantiations, a small library. Prints a table.
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'

const folder = join(packageRoot, 'build/cuda')
const library = join(folder, 'Release/cria_cuda.so')

interface Kernel {
  readonly name: string
  readonly arch: string
  readonly registers: number
  readonly spilled: number
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
    name: names[i]!.replace(/\(anonymous namespace\)::|cria::cuda::|void |\(.*\)$/g, ''),
    arch: entry.match(/for '(sm_\w+)'/)![1]!,
    registers: Number(entry.match(/Used (\d+) registers/)![1]),
    spilled: Number(entry.match(/(\d+) bytes spill stores/)![1]),
  }))
}

const there = existsSync(library)
const define = there ? describe : describe.skip
define(there ? 'the CUDA plug-in' : 'the CUDA plug-in: there is no nvcc 13 on this machine', () => {
  const logs = there ? readdirSync(folder, { recursive: true, encoding: 'utf8' }).filter(name => name.endsWith('.o.log')) : []
  const log = logs.map(name => readFileSync(join(folder, name), 'utf8')).join('\n')

  test('no kernel spills, for no architecture', () => {
    const all = kernels(log)
    const architectures = [...new Set(all.map(kernel => kernel.arch))]
    const rows = [...new Set(all.map(kernel => kernel.name))].sort().map(name => {
      const of = (arch: string) => all.find(kernel => kernel.name === name && kernel.arch === arch)
      return `${name.padEnd(52)}${architectures.map(arch => String(of(arch)?.registers ?? '-').padStart(8)).join('')}`
    })
    console.log(['registers'.padEnd(52) + architectures.map(arch => arch.padStart(8)).join(''), ...rows].join('\n'))
    expect(all.filter(({ spilled }) => spilled > 0)).toEqual([])
    expect(architectures.length).toBe(6)
    expect(rows.length).toBeGreaterThan(10)
    for (const arch of architectures) expect(all.filter(kernel => kernel.arch === arch).length).toBeLessThanOrEqual(100)
  })

  test('no setmaxnreg is ignored and no wgmma serialised', () => {
    expect(log).not.toMatch(/C7508|wgmma.*serializ|warning/i)
  })

  test('it is small and needs nothing of the toolkit', () => {
    expect(statSync(library).size).toBeLessThan(8e6)
    expect(execFileSync('ldd', [library]).toString()).not.toMatch(/cuda|cublas|nvrtc/)
  })
})
