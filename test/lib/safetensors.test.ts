// The safetensors parser under AddressSanitizer and UndefinedBehaviorSanitizer: native/tools/safetensors_check.cc runs it.
import { execFile, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { type CorruptFile, corruptFiles } from './safetensors_corrupt.ts'
import { counting, file, safetensors, validFiles } from './safetensors_files.ts'

interface Verdict {
  file: string
  ok: boolean
  tensors?: number
  misaligned?: number
  code?: string
  message?: string
  peak: number
}

const root = path.resolve(import.meta.dirname, '../..')
const binary = path.join(root, 'build/tools/safetensors_check')
const flags = ['-std=c++20', '-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']
const sources = ['tools/safetensors_check.cc', 'core/safetensors.cc', 'core/mapped_file.cc', 'core/json.cc']

// The records of 16384 tensors (the most a file may have) while their vector doubles: 1.5 x 16384 x 96 bytes = 2.4 MB, their
// shapes 1 MB; names are shorter than the header they come from. So 4 MB beyond the file is enough for any file at all.
const constant = 4 << 20

const list = (folder: string) => fs.readdirSync(folder).map(name => path.join(folder, name))

async function build(): Promise<void> {
  const native = path.join(root, 'native')
  const inputs = sources.map(source => path.join(native, source))
  const headers = ['core', 'tools'].flatMap(folder => list(path.join(native, folder)).filter(name => name.endsWith('.h')))
  const newest = Math.max(...[...inputs, ...headers].map(input => fs.statSync(input).mtimeMs))
  if (fs.existsSync(binary) && fs.statSync(binary).mtimeMs > newest) return
  fs.mkdirSync(path.dirname(binary), { recursive: true })
  const run = promisify(execFile)
  const compiler = process.env.CXX ?? 'g++'
  const objects = inputs.map(input => path.join(path.dirname(binary), `${path.basename(input)}.${process.pid}.o`))
  await Promise.all(inputs.map((input, i) => run(compiler, [...flags, '-c', input, '-o', objects[i]!])))
  await run(compiler, [...flags, ...objects, '-o', `${binary}.${process.pid}`])
  fs.renameSync(`${binary}.${process.pid}`, binary)
  for (const object of objects) fs.rmSync(object)
}

/** Runs the checker; a crash, a sanitizer report or a hang fails the test. */
function check(args: readonly string[], input = ''): string[] {
  const result = spawnSync(binary, args, { input, encoding: 'utf8', timeout: 50_000, maxBuffer: 1 << 28 })
  expect(result.error).toBeUndefined()
  expect(result.stderr).toBe('')
  expect(result.status).toBe(0)
  return result.stdout.split('\n').filter(line => line !== '')
}

const checkFiles = (files: readonly string[]): Verdict[] =>
  check([], files.map(name => `${name}\n`).join('')).map(line => JSON.parse(line) as Verdict)

let folder = ''
beforeAll(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'cria-safetensors-'))
  await build()
}, 300_000)
afterAll(() => fs.rmSync(folder, { recursive: true, force: true }))

function write(files: readonly { bytes: Uint8Array }[], name: string): string[] {
  return files.map(({ bytes }, i) => {
    const target = path.join(folder, `${name}-${i}.safetensors`)
    fs.writeFileSync(target, bytes)
    return target
  })
}

describe('corrupt files', () => {
  const files: CorruptFile[] = corruptFiles()

  test('there are at least 250, all different', () => {
    expect(new Set(files.map(({ bytes }) => bytes.toString('latin1'))).size).toBe(files.length)
    expect(files.length).toBeGreaterThanOrEqual(250)
    expect(new Set(files.map(({ code }) => code)).size).toBe(18)
  })

  test('every one is refused with its code, its name and what is wrong, in bounded memory', () => {
    const paths = write(files, 'corrupt')
    const verdicts = checkFiles(paths)
    expect(verdicts).toHaveLength(files.length)
    const wrong = files.flatMap(({ name, code, says, bytes }, i) => {
      const verdict = verdicts[i]!
      const { message = '' } = verdict
      const problems = [
        verdict.code === code ? '' : `expected ${code}`,
        message.startsWith(`${paths[i]}: `) ? '' : 'the message does not begin with the file',
        message.includes(says) ? '' : `the message does not say ${says}`,
        message.length < 700 ? '' : 'the message is too long',
        /\p{Cc}/u.test(message) ? 'the message has control characters' : '',
        verdict.peak <= bytes.length + constant ? '' : 'too much memory',
      ].filter(problem => problem !== '')
      return problems.length === 0 ? [] : [{ name, problems, verdict }]
    })
    expect(wrong).toEqual([])
  })
})

describe('valid files', () => {
  test('every variant is accepted, in bounded memory', () => {
    const files = validFiles()
    expect(files.length).toBeGreaterThanOrEqual(15)
    const verdicts = checkFiles(write(files, 'valid'))
    const wrong = verdicts.flatMap((verdict, i) =>
      verdict.ok && verdict.peak <= files[i]!.bytes.length + constant ? [] : [verdict],
    )
    expect(wrong).toEqual([])
    expect(verdicts).toHaveLength(files.length)
  })

  test('the fixtures are accepted', () => {
    const fixtures = list(path.join(root, 'test/fixtures'))
      .flatMap(list)
      .filter(name => name.endsWith('.safetensors'))
    const verdicts = checkFiles(fixtures)
    expect(verdicts.map(({ file, ok }) => ({ file, ok }))).toEqual(fixtures.map(name => ({ file: name, ok: true })))
    expect(verdicts.find(({ file }) => file.endsWith('llama3-32layer/model.safetensors'))?.tensors).toBe(291)
    expect(verdicts.every(({ misaligned }) => misaligned === 0)).toBe(true)
  })

  test('tensors that do not lie on a multiple of their element size are reported', () => {
    const tensors = ['U8', 'BF16', 'F32', 'F64'].map((dtype, i) => ({ name: dtype, dtype, shape: [8 >> i], data: counting(8) }))
    const shifts = [0, 1, 2, 4, 8]
    const verdicts = checkFiles(
      write(
        shifts.map(shift => ({ bytes: safetensors(tensors, { shift }) })),
        'shifted',
      ),
    )
    expect(verdicts.map(({ misaligned }) => misaligned)).toEqual([0, 3, 2, 1, 0])
  })

  test('a large file is prefetched in steps and read to its last byte', () => {
    const bytes = 40 << 20 // zeros, written as a hole in the file
    const name = path.join(folder, 'large.safetensors')
    fs.writeFileSync(name, file(`{"a":{"dtype":"U8","shape":[${bytes}],"data_offsets":[0,${bytes}]}}`))
    fs.truncateSync(name, fs.statSync(name).size + bytes)
    expect(checkFiles([name])).toMatchObject([{ ok: true, tensors: 1 }])
  })
})

test('what cannot be opened says why, and a FIFO does not hang', () => {
  const at = (name: string) => path.join(folder, name)
  fs.writeFileSync(at('file'), '')
  fs.mkdirSync(at('folder'))
  fs.symlinkSync(at('loop'), at('loop'))
  fs.symlinkSync(at('nowhere'), at('dangling'))
  fs.writeFileSync(at('locked'), '', { mode: 0 })
  expect(spawnSync('mkfifo', [at('fifo')]).status).toBe(0)
  const cases: [string, string, string][] = [
    [at('missing'), 'NOT_FOUND', 'No such file'],
    [at('dangling'), 'NOT_FOUND', 'No such file'],
    [at('file/x'), 'NOT_FOUND', 'Not a directory'],
    [at('folder'), 'UNREADABLE', 'a folder'],
    [at('fifo'), 'UNREADABLE', 'a FIFO'],
    ['/dev/null', 'UNREADABLE', 'a device'],
    [at('loop'), 'UNREADABLE', 'symbolic links'],
    [at('x'.repeat(300)), 'UNREADABLE', 'too long'],
  ]
  if (process.getuid?.() !== 0) cases.push([at('locked'), 'UNREADABLE', 'permission'])
  const verdicts = checkFiles(cases.map(([name]) => name))
  expect(verdicts).toEqual(
    cases.map(([name, code, says]) =>
      expect.objectContaining({
        ok: false,
        code: `ERR_MODEL_FILE_${code}`,
        message: expect.stringMatching(`^${name}: .*${says}`),
      }),
    ),
  )
})

describe('mutants', () => {
  const base = safetensors(
    [
      { name: 'a', dtype: 'F32', shape: [2, 3], data: counting(24) },
      { name: 'b.weight', dtype: 'BF16', shape: [4, 2], data: counting(16) },
      { name: 'c', dtype: 'U8', shape: [], data: counting(1) },
      { name: 'z', dtype: 'F64', shape: [0, 3], data: counting(0) },
      { name: 'd', dtype: 'I64', shape: [3], data: counting(24) },
    ],
    { metadata: { format: 'pt' } },
  )

  test.each([1, 2, 3, 4])('10000 of seed %d', seed => {
    const [name] = write([{ bytes: base }], `mutants-${seed}`)
    const [line] = check(['--mutate', `${seed}`, '10000', name!])
    const { accepted, codes, extra, slowest_ms } = JSON.parse(line!)
    // All codes but TOO_MANY_TENSORS are reached, and some mutants are valid: the damage gets past the first checks.
    expect(Object.keys(codes)).toHaveLength(17)
    expect(accepted).toBeGreaterThan(100)
    expect(accepted + Object.values<number>(codes).reduce((sum, n) => sum + n)).toBe(10_000)
    expect(extra).toBeLessThan(constant)
    expect(slowest_ms).toBeLessThan(1000)
  })

  test('500 of a real file', () => {
    check(['--mutate', '5', '500', path.join(root, 'test/fixtures/llama3-hd128/golden.safetensors')])
  })
})
