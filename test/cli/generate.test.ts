import { spawnSync } from 'node:child_process'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { Cria, cria, main } from './cria.ts'

interface Golden {
  readonly prompts: readonly {
    readonly text: string
    readonly greedy: readonly number[]
    readonly greedy_margin: readonly number[]
    readonly greedy_text: string
  }[]
}
const golden: Golden = JSON.parse(readFileSync(new URL('../fixtures/demo/golden.json', import.meta.url), 'utf8'))
/** The golden text is float32's; where its best two tokens are closer than this, bf16 may take the other. */
const clear = golden.prompts.filter(({ greedy_margin }) => Math.min(...greedy_margin) > 0.01)
const first = clear[0]!
const greedy = ['--device', 'cpu', '--temperature', '0', '--max-tokens', '64']

describe('text', () => {
  test.each(clear)('continues "$text" as the golden case does, and stdout has nothing else', async prompt => {
    const { code, stdout, stderr } = await cria(['generate', 'demo', prompt.text, ...greedy])
    expect(stdout).toBe(prompt.greedy_text)
    expect(stderr).toMatch(/^\d+ tokens, [\d.]+ tokens\/s, first token after .+\n.*loaded in .+\n$/)
    expect(code).toBe(0)
  })

  test('takes the prompt from stdin, without the newline at its end; --quiet says nothing', async () => {
    const result = await cria(['generate', 'demo', ...greedy, '--quiet'], `${first.text}\n`)
    expect(result).toEqual({ code: 0, stdout: first.greedy_text, stderr: '' })
  })

  test('the same seed gives the same text, another one another', async () => {
    const run = (seed: string) => cria(['generate', 'demo', first.text, '--seed', seed, '--max-tokens', '12'])
    const [a, b, c] = await Promise.all([run('7'), run('7'), run('8')])
    expect(a.stdout).not.toBe('')
    expect(b.stdout).toBe(a.stdout)
    expect(c.stdout).not.toBe(a.stdout)
  })

  test('ends before any of the stop texts', async () => {
    const { stdout } = await cria(['generate', 'demo', first.text, ...greedy, '--stop', ' sun', '--stop', 'xyz'])
    expect(stdout).toBe(first.greedy_text.slice(0, first.greedy_text.indexOf(' sun')))
  })

  test('--json prints one object, the completion', async () => {
    const { code, stdout } = await cria(['generate', 'demo', first.text, ...greedy, '--json'])
    const completion = JSON.parse(stdout)
    expect(completion).toMatchObject({ text: first.greedy_text, tokens: first.greedy, finishReason: 'length' })
    expect(completion.usage).toEqual({ promptTokens: 5, completionTokens: 64, totalTokens: 69 })
    expect(completion.timings.tokensPerSecond).toBeGreaterThan(0)
    expect(code).toBe(0)
  })
})

describe('what the text has to be', () => {
  const folder = mkdtempSync(join(tmpdir(), 'cria-format-'))
  afterAll(() => rmSync(folder, { recursive: true }))
  const file = (name: string, text: string) => {
    writeFileSync(join(folder, name), text)
    return join(folder, name)
  }
  const schema = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}'
  test.each([
    ['a pattern', 'regex:[0-9]{3}:[a-c]', /^\d{3}:[a-c]$/],
    ['a schema', `schema:${file('schema.json', schema)}`, /^\{\s*"a": ?1.*\}$/],
    ['a grammar', `grammar:${file('a.ebnf', 'root ::= "yes" | "no"')}`, /^(yes|no)$/],
    ['JSON', 'json', /^\s*[{["\dtfn-]/], // which need not end within 99 tokens
  ])('%s', async (_, format, expected) => {
    const args = ['generate', 'demo', first.text, ...greedy, '--max-tokens', '99', '--format', format, '--quiet']
    const { code, stdout, stderr } = await cria(args)
    expect(stdout).toMatch(expected)
    expect([code, stderr]).toEqual([0, ''])
  })

  test('penalties and log-probabilities', async () => {
    const args = ['generate', 'demo', first.text, '--temperature', '0', '--max-tokens', '40', '--json', '--top-logprobs', '3']
    const penalties = ['--repetition-penalty', '1.5', '--frequency-penalty', '1', '--presence-penalty', '1', '--min-tokens', '9']
    const [plain, other] = await Promise.all([cria(args), cria([...args, ...penalties])])
    const [a, b] = [plain, other].map(({ stdout }) => JSON.parse(stdout))
    expect(b.text).not.toBe(a.text)
    expect(a.topLogprobs.map((top: unknown[]) => top.length)).toEqual(a.tokens.map(() => 3))
    const lookup = await cria([...args, '--prompt-lookup', '8'])
    expect(JSON.parse(lookup.stdout).tokens).toEqual(a.tokens)
  })
})

describe('what goes wrong', () => {
  test('a folder that is not there: one line with its path, the code and a name that works', async () => {
    const { code, stdout, stderr } = await cria(['generate', '/no/such/model', 'x'])
    expect(stderr).toMatch(/^cria: \/no\/such\/model: .*demo.*\(ERR_CONFIG_MISSING\)\n$/)
    expect([code, stdout]).toEqual([1, ''])
  })

  test('CRIA_DEBUG shows the stack', async () => {
    const { stderr } = await cria(['generate', '/no/such/model', 'x'], '', { CRIA_DEBUG: '1' })
    expect(stderr).toMatch(/\n +at /)
  })

  test('a shape without weights: says what it is good for', async () => {
    expect((await cria(['generate', 'llama3-8b', 'x'])).stderr).toContain('for cria inspect')
  })

  test('nothing on stdin', async () => {
    const { code, stderr } = await cria(['generate', 'demo'])
    expect(stderr).toMatch(/^cria: .*prompt.*\(ERR_PROMPT_EMPTY\)\n$/)
    expect(code).toBe(1)
  })

  test('a device that is not there', async () => {
    const { code, stderr } = await cria(['generate', 'demo', 'x', '--device', 'tpu'])
    expect(stderr).toMatch(/^cria: .*tpu.*\(ERR_DEVICE_UNKNOWN\)\n$/)
    expect(code).toBe(1)
  })

  test.each([
    [['generate', 'demo', 'x', '--bogus'], '--bogus'],
    [['generate', 'demo', 'x', '--temperature', 'hot'], "'hot' is invalid"],
    [['generate', 'demo', 'x', '--max-tokens', '0'], 'a whole number from 1 on'],
    [['generate', 'demo', 'x', '--format', 'yaml'], 'Expected json, schema:FILE, regex:PATTERN or grammar:FILE.'],
    [['generate', 'demo', 'x', '--format', 'schema:/no/such/file'], "no such file or directory, open '/no/such/file'"],
    [['generate', 'demo', 'x', '--presence-penalty', '3'], 'a number from -2 to 2'],
    [['generate', 'demo', 'x', '--repetition-penalty', '0'], 'a number above 0 and at most 10'],
    [['generate', 'demo', 'x', '--top-logprobs', '3'], '--top-logprobs is for --json'],
    [['generate'], "argument 'model'"],
    [['bogus'], "command 'bogus'"],
  ])('wrong usage: %j', async (args, text) => {
    const { code, stdout, stderr } = await cria(args)
    expect(stderr).toContain(text)
    expect([code, stdout]).toEqual([2, ''])
  })
})

describe('ending early', () => {
  test('Ctrl-C ends the generation with what there is, and the exit code says so', async () => {
    const run = new Cria(['generate', 'demo', first.text, '--device', 'cpu', '--temperature', '0'])
    await run.until(() => run.stdout.length > 20)
    run.interrupt()
    const { code, stdout, stderr } = await run.end()
    expect(stdout.startsWith(first.greedy_text.slice(0, 20))).toBe(true)
    expect(stderr).toContain('ended by Ctrl-C')
    expect(code).toBe(130)
  })

  test('a stdout that is full is an error, though it shows with the last write', () => {
    for (const args of [
      ['inspect', 'llama3-8b'],
      ['generate', 'demo', 'x', '--max-tokens', '3', '--json', '--quiet'],
    ]) {
      const full = openSync('/dev/full', 'w')
      const { status, stderr } = spawnSync(process.execPath, [main, ...args], {
        stdio: ['ignore', full, 'pipe'],
        encoding: 'utf8',
      })
      closeSync(full)
      expect({ args, status }).toEqual({ args, status: 1 })
      expect(stderr).toMatch(/cria: .*ENOSPC/)
    }
  })

  test('a stdout that nobody reads any more ends it quietly', async () => {
    const run = new Cria(['generate', 'demo', first.text, '--device', 'cpu', '--temperature', '0'])
    await run.until(() => run.stdout.length > 0)
    run.closeOutput()
    const { code, stderr } = await run.end()
    expect([code, stderr]).toEqual([0, ''])
  })
})
