import { fileURLToPath } from 'node:url'
import { describe, expect, test } from '@jest/globals'
import { cria } from './cria.ts'

/** What inspect must not need. */
const noAddon = { CRIA_ADDON: '/nonexistent' }

describe('inspect', () => {
  test('llama3-8b: the facts, and the walk through its shapes', async () => {
    const { code, stdout, stderr } = await cria(['inspect', 'llama3-8b'], '', noAddon)
    expect(stdout).toContain('32 layers, dim 4096, 32 heads on 8 KV heads of 128, FFN 14336')
    expect(stdout).toContain('vocabulary 128256')
    expect(stdout).toContain('context 8192')
    expect(stdout).toContain('131,072 bytes a token')
    const walk = stdout.slice(stdout.indexOf('FORWARD PASS'))
    expect(walk).toMatch(/embedding +\[8192\] .*\[8192, 4096\]/)
    expect(walk).toMatch(/head +\[8192, 4096\] .*\[8192, 128256\]/)
    expect([code, stderr]).toEqual([0, ''])
  })

  test('--json is the inspection', async () => {
    const { stdout } = await cria(['inspect', 'llama3-8b', '--tokens', '1', '--past', '99', '--json'], '', noAddon)
    const inspection = JSON.parse(stdout)
    expect(inspection.config).toMatchObject({ layers: 32, heads: 32, kvHeads: 8, vocab: 128256, dim: 4096, hidden: 14336 })
    expect(inspection.kv.bytesPerToken).toBe(131072)
    expect(inspection).toMatchObject({ tokens: 1, past: 99 })
    expect(inspection.steps.at(-1).output).toEqual([1, 128256])
  })

  test('demo, and a folder', async () => {
    const folder = fileURLToPath(new URL('../fixtures/llama3-hd128', import.meta.url))
    const [demo, other] = await Promise.all([cria(['inspect', 'demo'], '', noAddon), cria(['inspect', folder], '', noAddon)])
    expect(demo.stdout).toContain('vocabulary 4096 (tied)')
    expect(other.stdout).toContain('2 heads on 1 KV head of 128')
  })

  test('what is not there: the names that are', async () => {
    const { code, stderr } = await cria(['inspect', 'llama4'], '', noAddon)
    expect(stderr).toMatch(/^cria: llama4: .*llama3-8b.*\(ERR_CONFIG_MISSING\)\n$/)
    expect(code).toBe(1)
  })

  test('too many tokens', async () => {
    const { code, stderr } = await cria(['inspect', 'demo', '--tokens', '5000'])
    expect(stderr).toMatch(/^cria: tokens is 5000.*\(ERR_OPTION_TOKENS\)\n$/)
    expect(code).toBe(1)
  })

  test('others need the addon, and say how to get one', async () => {
    const { code, stderr } = await cria(['generate', 'demo', 'x'], '', noAddon)
    expect(stderr).toMatch(/^cria: .*\(ERR_DEVICE_ADDON\)\n$/)
    expect(code).toBe(1)
  })
})
