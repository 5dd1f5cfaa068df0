// Bugs that kernels like these have had, planted one at a time into a plug-in or an addon of their own: some test must fail.
import { execFile } from 'node:child_process'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, test } from '@jest/globals'
import { packageRoot } from '../lib/package.ts'
import { runJest } from './run_jest.ts'

/** unit: the .cu file that includes a header that is planted in. */
type Plant = readonly [name: string, file: string, find: string, replace: string, tests: string, unit?: string]

const plants: readonly Plant[] = [
  [
    'RoPE leaves pairs side by side',
    'rope_append.cuh',
    'to[d] = bf16(fused(a, cosine, -product(b, sine)));\n    to[d + dim / 2] =',
    'to[2 * d] = bf16(fused(a, cosine, -product(b, sine)));\n    to[2 * d + 1] =',
    'rope_append',
    'rope_append.cu',
  ],
  ['RoPE turns the other way', 'rope_append.cc', 'a * c - b * s);\n    store(', 'a * c + b * s);\n    store(', 'rope_append'],
  [
    'all keys go to the first head',
    'rope_append.cuh',
    'slot / page_size} * kv_heads + kv)',
    'slot / page_size} * kv_heads)',
    'rope_append',
    'rope_append.cu',
  ],
  [
    'a query head h has the key head h % kvHeads',
    'attention_units.cuh',
    '(token * op.kv_heads + unit.head) * op.group + packed(row) % op.group)',
    '(token * op.group + packed(row) % op.group) * op.kv_heads + unit.head)',
    'attention',
    'attention.cu',
  ],
  ['a token sees the next one', 'attention_units.cuh', 'rows + token + 1', 'rows + token + 2', 'attention', 'attention.cu'],
  ['a token does not see itself', 'attention.cc', 'lengths[s] - rows + i + 1', 'lengths[s] - rows + i', 'attention'],
  ['scores are divided by headDim', 'attention.cc', '1.0f / __builtin_sqrtf(float(dim))', '1.0f / float(dim)', 'attention'],
  [
    'keys after the first page come from the first page',
    'attention.cc',
    'page = keys.page(p)',
    'page = keys.page(0)',
    'attention',
  ],
  ['gate and up are swapped', 'swiglu.cuh', 'bf16 silu_times(bf16 gate, bf16 up)', 'bf16 silu_times(bf16 up, bf16 gate)', 'swiglu', 'swiglu.cu'], // biome-ignore format: a line
  ['epsilon is left out', 'rms_norm.cc', '__builtin_sqrtf(mean + eps)', '__builtin_sqrtf(mean)', 'rms_norm'],
  ['the end of K is left out', 'linear.cu', '(end - begin + kDepth - 1) / kDepth', '(end - begin) / kDepth', 'linear'],
  ['a token of the step before is read from row 0 only', 'embed.cu', '? previous[from] : -1', '? previous[0] : -1', 'embed'],
  ['a row of the next shard is read from this one', 'embed.cc', 'while (id >= block->rows)', 'while (id > block->rows)', 'embed'],
  ['topK keeps one more', 'sample.cc', 'double(top_k), [](', 'double(top_k + 1), [](', 'sample'],
  [
    'draws depend on the place in the batch',
    'sample.cu',
    'position(uint32_t(op.position[at]))',
    'position(uint32_t(at))',
    'sample',
  ],
  [
    'a penalty for tokens of the prompt alone',
    'adjust.cu',
    'count > 0 ? logit - presence',
    'count >= 0 ? logit - presence',
    'adjust',
  ],
]

const build = join(packageRoot, 'build')
const ops = join(packageRoot, 'native/ops')
interface Command {
  readonly command: string
  readonly file: string
}
const commands: Command[] = JSON.parse(readFileSync(join(build, 'compile_commands.json'), 'utf8'))
const objectOf = ({ command }: Command) => / -o (\S+)/.exec(command)![1]!

/** An addon in this folder, beside its emulated GPU: one of them has the bug. */
async function plant(folder: string, [, file, find, replace, , unit = file]: Plant): Promise<void> {
  const emulated = unit.endsWith('.cu')
  const target = emulated ? / -Dcria_simt_EXPORTS / : / -D(cria_EXPORTS|CRIA_ISA=\w+) /
  const parts = commands.filter(({ command }) => target.test(command))
  const planted = parts.find(part => part.file === join(ops, unit) && (emulated || / -DCRIA_ISA=avx2 /.test(part.command)))!
  copyFileSync(join(ops, unit), join(folder, unit))
  writeFileSync(
    join(folder, file),
    readFileSync(join(ops, file), 'utf8').replace(find, () => replace),
  )
  const object = join(folder, 'planted.o')
  const compile = planted.command
    .replace(/ -M[DTF]( \S+\.[od]+)?/g, '')
    .replace(` -o ${objectOf(planted)}`, ` -I ${ops} -O1 -o ${object}`)
    .replace(` ${planted.file}`, ` ${join(folder, unit)}`)
  const name = emulated ? 'cria_simt.so' : 'cria.node'
  const objects = parts.map(part => (part === planted ? object : objectOf(part)))
  const shell = promisify(execFile)
  await shell('sh', ['-c', compile], { cwd: build })
  await shell('c++', ['-shared', '-Wl,--gc-sections', '-o', join(folder, name), ...objects, '-ldl'], { cwd: build })
  if (emulated) copyFileSync(join(build, 'Release/cria.node'), join(folder, 'cria.node'))
}

/** Runs the tests of an op with an addon, until the first failure; the exit code. */
async function run(folder: string, [, file, , , tests, unit = file]: Plant): Promise<number | null> {
  const cases = unit.endsWith('.cu') ? '^(?!.* refused: ).* on simt ' : ' on cpu avx2 '
  const env = { CRIA_ADDON: join(folder, 'cria.node'), CRIA_BAIL: '1' }
  return (await runJest([`test/ops/${tests}.test.ts`, '-t', cases], env, 100_000)).code
}

async function found(plants: Plant): Promise<boolean> {
  const folder = mkdtempSync(join(tmpdir(), 'cria-plant-'))
  try {
    await plant(folder, plants)
    return (await run(folder, plants)) !== 0
  } finally {
    rmSync(folder, { recursive: true })
  }
}

describe('a bug planted in a kernel is found:', () => {
  test.concurrent.each(plants)(
    '%s',
    async (...plant) => {
      const [name, file, find] = plant
      expect(readFileSync(join(ops, file), 'utf8').split(find)).toHaveLength(2)
      expect({ name, found: await found(plant) }).toEqual({ name, found: true })
    },
    300_000,
  )
  test.concurrent.each([
    ['rope_append.cc', 'rope_append'],
    ['rope_append.cu', 'rope_append'],
  ])(
    'and without a bug the tests pass with an addon built so, %s',
    async (file, tests) => {
      expect(await found(['', file, '#include', '#include', tests])).toBe(false)
    },
    300_000,
  )
})
