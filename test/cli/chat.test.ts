import { fileURLToPath } from 'node:url'
import { describe, expect, test } from '@jest/globals'
import { Cria, cria } from './cria.ts'

const short = ['chat', 'demo', '--device', 'cpu', '--temperature', '0', '--max-tokens', '8']

describe('piped', () => {
  test('each line is a turn; warns that this is a base model', async () => {
    const { code, stdout, stderr } = await cria(short, 'Hello\n\nHello\n')
    const answers = stdout.split('\n').filter(line => line !== '')
    expect(answers.length).toBeGreaterThanOrEqual(2)
    expect(stderr.match(/base model/g)).toHaveLength(1)
    expect(stderr.match(/stopped after --max-tokens 8/g)).toHaveLength(2)
    expect(code).toBe(0)
  })

  test('the conversation goes along, until /reset', async () => {
    const [once, twice, reset] = await Promise.all([
      cria(short, 'Hello\n'),
      cria(short, 'Hello\nHello\n'),
      cria(short, 'Hello\n/reset\nHello\n'),
    ])
    expect(twice.stdout.startsWith(once.stdout)).toBe(true)
    expect(twice.stdout).not.toBe(once.stdout.repeat(2))
    expect(reset.stdout).toBe(once.stdout.repeat(2))
  })

  test('--system goes along, after /reset too', async () => {
    const system = [...short, '--system', 'Speak of whales.']
    const [plain, once, reset] = await Promise.all([
      cria(short, 'Hello\n'),
      cria(system, 'Hello\n'),
      cria(system, 'Hello\n/reset\nHello\n'),
    ])
    expect(once.stdout).not.toBe(plain.stdout)
    expect(reset.stdout).toBe(once.stdout.repeat(2))
  })

  test('/help, an unknown command and /exit', async () => {
    const { code, stdout, stderr } = await cria(short, '/help\n/bogus\n/exit\nHello\n')
    expect(stderr).toContain('no command /bogus')
    expect(stderr.match(/\/reset +forget/g)).toHaveLength(2)
    expect([code, stdout]).toEqual([0, ''])
  })

  test('a folder without a tokenizer: refused at once', async () => {
    const folder = fileURLToPath(new URL('../fixtures/llama3-hd128', import.meta.url))
    const { code, stderr } = await cria(['chat', folder, '--device', 'cpu'], 'Hello\n')
    expect(stderr).toMatch(/^cria: .*llama3-hd128 .*\(ERR_PROMPT_TOKENIZER\)\n$/)
    expect(code).toBe(1)
  })

  test('a full context: says the way out and goes on', async () => {
    const input = `${'Hello my friend. '.repeat(20)}\nHello\nHello\n/reset\nHello\n`
    const { code, stdout, stderr } = await cria(
      ['chat', 'demo', '--device', 'cpu', '--temperature', '0', '--context', '32'],
      input,
    )
    expect(stderr).toContain('send a shorter message')
    expect(stderr).toContain('context of 32 tokens is full: /reset')
    expect(stderr).toContain('no room for this and an answer: /reset')
    expect(stdout.length % 2).toBe(0)
    expect(stdout).toBe(stdout.slice(0, stdout.length / 2).repeat(2)) // before and after /reset
    expect(code).toBe(0)
  })
})

describe('Ctrl-C', () => {
  test('stops the answer and not the program', async () => {
    const run = new Cria(['chat', 'demo', '--device', 'cpu', '--temperature', '0'])
    for (const turn of [1, 2]) {
      const before = run.stdout.length
      run.type('Hello\n')
      await run.until(() => run.stdout.length > before)
      run.interrupt()
      await run.until(() => run.stderr.match(/\[stopped\]/g)?.length === turn)
    }
    run.endInput()
    expect((await run.end()).code).toBe(0)
  })

  test('at the prompt leaves', async () => {
    const run = new Cria(short)
    run.type('/help\n')
    await run.until(() => run.stderr.includes('/exit'))
    run.interrupt()
    expect((await run.end()).code).toBe(0)
  })
})
