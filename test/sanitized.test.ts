// The kernels of the GPU on emulated threads, under AddressSanitizer and UndefinedBehaviorSanitizer: every access of a
// kernel to device, shared and local memory is checked, which a GPU does not do.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'

const folder = join('build', 'asan')
/** A library of the compiler; its bare name when it has none. */
const library = (name: string) => execFileSync('c++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim()
const runtime = ['libasan.so', 'libubsan.so', 'libstdc++.so.6'].map(library)
const there = process.platform === 'linux' && runtime.every(path => existsSync(path))

const define = there ? test : test.skip
define(
  `all ops on emulated threads${there ? '' : ': this compiler has no sanitizers'}`,
  () => {
    const run = (args: string[], more: NodeJS.ProcessEnv = {}) =>
      spawnSync(process.execPath, args, {
        cwd: packageRoot,
        encoding: 'utf8',
        env: { ...process.env, ...more },
        maxBuffer: 2 ** 28,
      })
    const options = ['compile', '-O', folder, '--CDCRIA_SANITIZE=address,undefined', '--target', 'cria_simt']
    const built = run(['node_modules/.bin/cmake-js', ...options])
    expect({ status: built.status, log: built.status === 0 ? '' : built.stdout + built.stderr }).toEqual({ status: 0, log: '' })
    const addon = join(packageRoot, folder, 'Release/cria.node')
    copyFileSync(join(packageRoot, 'build/Release/cria.node'), addon) // it opens the plug-in beside it

    const jest = ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning', 'node_modules/jest/bin/jest.js']
    const { status, stderr } = run([...jest, '-w', '2', 'test/ops', '-t', '^(?!.* refused: ).* on simt '], {
      CRIA_ADDON: addon,
      LD_PRELOAD: runtime.join(' '),
      ASAN_OPTIONS: 'detect_leaks=0', // Node's own
      UBSAN_OPTIONS: 'print_stacktrace=1',
    })
    const report = stderr.match(/ERROR: AddressSanitizer[\s\S]{0,4000}|^.*runtime error[\s\S]{0,2000}/m)?.[0]
    expect(report).toBeUndefined()
    expect(Number(stderr.match(/Tests: .*\b(\d+) passed/)?.[1])).toBeGreaterThanOrEqual(1254)
    expect(status).toBe(0)
  },
  900_000,
)
