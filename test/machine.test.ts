// The emulated machine itself, under AddressSanitizer and UndefinedBehaviorSanitizer: native/tools/machine_check.cc runs it.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'

const native = join(packageRoot, 'native')
const machine = readdirSync(join(native, 'machine')).filter(name => name.endsWith('.cc'))
const sources = [
  ...['', '_async', '_linear'].map(part => join(native, `tools/machine_check${part}.cc`)),
  ...machine.map(name => join(native, 'machine', name)),
]

describe('the emulated machine', () => {
  // Milliseconds for a linear of 64 x 128 x 256, DESIGN.md, section 4: the switch by hand is for that.
  const variants: [string, string[], number][] = [
    ['by hand', ['-O1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all'], Infinity],
    ['ucontext', ['-O1', '-DCRIA_UCONTEXT'], Infinity],
    ['by hand, optimised', ['-O3'], 5],
  ]
  test.each(variants)(
    'instructions mean what they should, and misuse is told; switches: %s',
    (name, flags, most) => {
      const folder = join(packageRoot, 'build/tools')
      mkdirSync(folder, { recursive: true })
      const binary = join(folder, `machine_check_${flags.length}`)
      execFileSync('c++', ['-std=c++20', '-g', ...flags, ...sources, '-o', binary, '-pthread'])
      const { status, stdout, stderr } = spawnSync(binary, {
        encoding: 'utf8',
        env: { ...process.env, ASAN_OPTIONS: 'detect_leaks=0' },
      })
      expect(stdout.match(/^WRONG .*$/gm) ?? []).toEqual([])
      expect({ name, status, stderr }).toEqual({ name, status: 0, stderr: '' })
      expect(stdout.match(/^ok /gm)!.length).toBeGreaterThanOrEqual(24)
      expect(Number(stdout.match(/^linear took ([\d.]+) ms$/m)?.[1])).toBeLessThan(most)
    },
    120_000,
  )
})
