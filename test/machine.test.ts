// The emulated machine itself, under AddressSanitizer and UndefinedBehaviorSanitizer: native/tools/machine_check.cc runs it.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'

const native = join(packageRoot, 'native')
const machine = readdirSync(join(native, 'machine')).filter(name => name.endsWith('.cc'))
const sources = ['tools/machine_check.cc', 'tools/machine_check_async.cc', ...machine.map(name => `machine/${name}`)].map(name =>
  join(native, name),
)

describe('the emulated machine', () => {
  const variants: [string, string[]][] = [
    ['by hand', ['-O1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']],
    ['ucontext', ['-O1', '-DCRIA_UCONTEXT']],
  ]
  test.each(variants)(
    'instructions mean what they should, and misuse is told; switches: %s',
    (name, flags) => {
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
      expect(stdout.match(/^ok /gm)!.length).toBeGreaterThanOrEqual(23)
    },
    120_000,
  )
})
