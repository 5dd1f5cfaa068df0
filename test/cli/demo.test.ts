import { readFileSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import { Wrap } from '../../lib/cli/terminal.ts'
import { cria } from './cria.ts'

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))

test('demo: device and why, the text, the rates; the same each time', async () => {
  const args = ['demo', '--device', 'cpu', '--max-tokens', '24']
  const [{ code, stdout, stderr }, again] = await Promise.all([cria(args), cria(args)])
  expect(stdout).toMatch(/cuda:0 +(yes|no) /)
  expect(stdout).toMatch(/cpu +yes .*\d threads?\n/)
  expect(stdout).toMatch(/using +cpu \(.*\) \(--device\)\n/)
  expect(stdout).toMatch(/Call me Ishmael\. Some years ago[\s\S]{20}/)
  expect(stdout).toMatch(/\n24 tokens, [\d.]+ tokens\/s, first token after [\d.]+ m?s, loaded in [\d.]+ m?s\n/)
  expect(stdout).toContain('npx cria chat')
  expect([code, stderr]).toEqual([0, ''])
  const story = (text: string) => text.slice(text.indexOf('Call me'), text.indexOf('24 tokens'))
  expect(story(again.stdout)).toBe(story(stdout))
})

test('--version, --help', async () => {
  const [number, help] = await Promise.all([cria(['--version']), cria(['--help'])])
  expect(number).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' })
  for (const name of ['demo', 'chat', 'generate', 'inspect', 'Exit codes', 'Examples']) expect(help.stdout).toContain(name)
  expect(help.code).toBe(0)
})

test('Wrap breaks between words, wherever the pieces end', () => {
  const text = 'one two three fourteen\n\nfive  six, seven'
  const whole = new Wrap(10)
  const pieces = new Wrap(10)
  const expected = 'one two\nthree\nfourteen\n\nfive  six,\nseven'
  expect(whole.push(text) + whole.end()).toBe(expected)
  expect([...text].map(character => pieces.push(character)).join('') + pieces.end()).toBe(expected)
})
