import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { afterAll, expect, test } from '@jest/globals'
import { packageRoot } from '../../lib/package.ts'
import { cria } from './cria.ts'

/** CRIA_SIMT that takes a call of this kind in a file away: the first, or so many after it. */
function without(call: string, file: string, after = 0): NodeJS.ProcessEnv {
  const lines = readFileSync(join(packageRoot, 'native', file), 'utf8').split('\n')
  const numbers = lines.flatMap((line, i) => (line.trim().startsWith(call) ? [i + 1] : []))
  expect(numbers.length).toBeGreaterThan(after)
  return { CRIA_SIMT: `wound=${basename(file)}:${numbers[after]}` }
}

const folder = mkdtempSync(join(tmpdir(), 'cria-doctor-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** An environment in which this C is libcuda.so.1, and this one libnvidia-ml.so.1. */
function withDriver(name: string, cuda: string, nvml = ''): NodeJS.ProcessEnv {
  const path = join(folder, name)
  mkdirSync(path)
  for (const [library, source] of Object.entries({ 'libcuda.so.1': cuda, 'libnvidia-ml.so.1': nvml })) {
    writeFileSync(join(path, 'source.c'), source)
    execFileSync('cc', ['-shared', '-fPIC', join(path, 'source.c'), '-o', join(path, library)])
  }
  return { LD_LIBRARY_PATH: path }
}
const version = (cuda: number) => `int cuDriverGetVersion(int* v) { *v = ${cuda}; return 0; }`
const nvml = `
  int nvmlInit_v2(void) { return 0; }
  int nvmlShutdown(void) { return 0; }
  int nvmlSystemGetDriverVersion(char* text, unsigned size) {
    const char* version = "535.230.02";
    for (unsigned i = 0; i < size && (text[i] = version[i]); i++) {}
    return 0;
  }`

test('an old driver is told from none, with its version and what is needed', async () => {
  const env = withDriver('old', version(12020), nvml)
  const { code, stdout } = await cria(['doctor'], '', env)
  expect(stdout).toMatch(/^NVIDIA driver 535\.230\.02 for CUDA 12\.2; CUDA plug-in (not built|built with CUDA 13\.\d for sm_)/m)
  expect(stdout).toMatch(
    /^cuda:0 {2}not used: the NVIDIA driver 535\.230\.02 is for CUDA 12\.2, but cria needs CUDA 13\.0: install driver R580 or newer$/m,
  )
  expect(stdout).toMatch(/^ {2}self-test passed/m) // of the CPU
  expect(code).toBe(0)
  const { gpu } = JSON.parse((await cria(['doctor', '--json'], '', env)).stdout)
  expect(gpu).toMatchObject({ driver: '535.230.02', driverCuda: '12.2' })
})

test('a driver that says nothing, and one that is new but broken', async () => {
  const mute = await cria(['doctor'], '', withDriver('mute', 'int nothing;'))
  expect(mute.stdout).toMatch(/^cuda:0 {2}not used: the NVIDIA driver( [\d.]+)? does not say which CUDA it is for$/m)
  // Its plug-in is asked, where there is one, and gets no further: nothing of the driver is there.
  const broken = await cria(['doctor'], '', withDriver('broken', version(13000)))
  expect(broken.stdout).toMatch(/^NVIDIA driver( [\d.]+)? for CUDA 13\.0; CUDA plug-in/m)
  expect(broken.stdout).toMatch(
    /^cuda:0 {2}not used: (the driver says: .{10,}|device cuda: this build of cria has no such plug-in)/m,
  )
  expect([mute.code, broken.code]).toEqual([0, 0])
})

test('which GPUs a plug-in can run on, and why not', () => {
  const source = `
    #include <iostream>
    #include "${join(packageRoot, 'native/devices/driver.h')}"
    int main() {
      const std::vector<std::string> built{"80", "90a", "120"};
      const int gpus[][2] = {{7, 5}, {8, 0}, {8, 9}, {9, 0}, {10, 0}, {12, 1}};
      for (const auto& gpu : gpus) std::cout << cria::gpu_problem("a GPU", gpu[0], gpu[1], built) << "\\n";
    }`
  const [main, binary] = [join(folder, 'main.cc'), join(folder, 'main')]
  writeFileSync(main, source)
  execFileSync('c++', ['-std=c++20', main, join(packageRoot, 'native/devices/driver.cc'), '-o', binary, '-ldl'])
  const lines = execFileSync(binary).toString().split('\n')
  expect(lines[0]).toBe('a GPU has compute capability 7.5, but cria needs 8.0 (Ampere) or newer')
  expect([1, 2, 3, 5].map(i => lines[i])).toEqual(['', '', '', ''])
  expect(lines[4]).toMatch(
    /^a GPU has compute capability 10\.0, but this plug-in was built for sm_80, sm_90a, sm_120 only: build/,
  )
})

test('says what there is, why a device is not used, and that the CPU computes right', async () => {
  const { code, stdout, stderr } = await cria(['doctor'])
  expect([code, stderr]).toEqual([0, ''])
  expect(stdout).toMatch(/^cria \d+\.\d+\.\d+, Node v\d+/)
  expect(stdout).toMatch(
    /^(no NVIDIA driver|NVIDIA driver [\d.]+.*); CUDA plug-in (not built|built with CUDA 13\.\d for sm_\d+)/m,
  )
  expect(stdout).toMatch(/^cuda:0 {2}(not used: .{10,}|.*compute capability \d+\.\d)/m)
  const passed =
    /^cpu .* threads?, .*\n {2}self-test passed: every operation in prefill and decode, and draws, against float32 on the CPU, in .*, errors of at most 0\.\d\d%$/m
  expect(stdout).toMatch(passed)
})

test('--simt --json: the kernels of the GPU, on emulated threads', async () => {
  const { code, stdout } = await cria(['doctor', '--simt', '--json'])
  const { devices } = JSON.parse(stdout)
  const simt = devices.find((d: { device: string }) => d.device === 'simt')
  const forward = ['embed', 'rmsNorm', 'linear', 'ropeAppend', 'attention', 'added', 'swiglu', 'selectRows', 'logits', 'sample']
  expect(simt.checks.map(({ step, op }: { step: string; op: string }) => `${step} ${op}`)).toEqual([
    ...forward.map(op => `prefill ${op}`),
    ...forward.map(op => `decode ${op}`),
    'draw ids',
    'draw logprobs',
  ])
  expect(simt.milliseconds).toBeLessThan(10_000)
  for (const { error, ok } of simt.checks) expect({ small: error < 0.01, ok }).toEqual({ small: true, ok: true })
  expect(code).toBe(0)
})

test('a device that computes wrong, or fails, is told and is an error', async () => {
  // Without its barrier, a block uses what the other warps have not written yet.
  const wounded = await cria(['doctor', '--simt'], '', without('sync_block(', 'ops/rms_norm.cu'))
  expect(wounded.stdout).toMatch(/^simt .*\n {2}self-test failed: every operation/m)
  expect(wounded.stdout).toMatch(/^ {4}prefill, rmsNorm: (Infinity|\d+\.\d\d)%, expected at most 2%$/m)
  expect(wounded.code).toBe(1)

  const failing = await cria(['doctor', '--simt'], '', without('grid_wait(', 'ops/embed.cu'))
  expect(failing.stdout).toMatch(/self-test failed: embed, .* has ended without grid_wait\(\) .*; CRIA_SIMT=/)
  expect(failing.code).toBe(1)
})

test('the self-test reaches the split of keys, and draws', async () => {
  // A split that another block has not written yet is merged; prefill has none.
  const split = await cria(
    ['doctor', '--simt'],
    '',
    without('CRIA_DEVICE void operator()() const { sync_warps(2', 'ops/attention_ring.cuh'),
  )
  expect(split.stdout).toMatch(/^ {4}decode, attention: /m)
  expect(split.stdout).not.toMatch(/^ {4}prefill, /m)
  // Bins that others have not emptied yet.
  const draws = await cria(['doctor', '--simt'], '', without('sync_block(', 'ops/sample.cu', 1))
  expect(draws.stdout.match(/^ {4}\w+, \w+/gm)).toEqual(['    draw, ids', '    draw, logprobs'])
  expect([split.code, draws.code]).toEqual([1, 1])
})

test('no memory is a reason, with what is free and what is needed', async () => {
  const having = (bytes: number) => cria(['doctor', '--simt'], '', { CRIA_SIMT: `memory=${bytes}` })
  const [nothing, little, enough] = [await having(1000), await having(20e6), await having(32.1e6)]
  const takes = 'the self-test takes 32\\.0 MB; end what else uses this device$'
  expect(nothing.stdout).toMatch(
    new RegExp(`failed: no memory: simt: \\d+ bytes asked for, but only 1000 of 1000 are free; ${takes}`, 'm'),
  )
  expect(little.stdout).toMatch(new RegExp(`failed: no memory: simt has 20\\.0 MB that cria can use; ${takes}`, 'm'))
  expect(enough.stdout).toMatch(/^simt .*\n {2}self-test passed/m)
  expect([nothing.code, little.code, enough.code]).toEqual([1, 1, 0])
})
