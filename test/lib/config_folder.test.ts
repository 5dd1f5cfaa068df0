import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { parseConfig, readConfig } from '../../lib/config.ts'
import { ModelError } from '../../lib/errors.ts'
import { jsonErrorOffset, parseJson } from '../../lib/json.ts'

const demo = new URL('../../lib/demo/', import.meta.url).pathname
let text = '' // of a good config.json
beforeAll(async () => {
  text = await readFile(join(demo, 'config.json'), 'utf8')
})

describe('folders', () => {
  let root = ''
  const folder = async (name: string, config: string | Uint8Array, generation?: string) => {
    await mkdir(join(root, name))
    await writeFile(join(root, name, 'config.json'), config)
    if (generation !== undefined) await writeFile(join(root, name, 'generation_config.json'), generation)
    return join(root, name)
  }
  beforeAll(async () => {
    root = await mkdtemp(join(tmpdir(), 'cria-config-'))
  })
  afterAll(() => rm(root, { recursive: true }))

  const rejects = async (path: string, code: string, ...inMessage: string[]) => {
    const error = await readConfig(path).then(
      () => undefined,
      (thrown: ModelError) => thrown,
    )
    expect(error).toBeInstanceOf(ModelError)
    expect(error?.code).toBe(code)
    for (const part of inMessage) expect(error?.message).toContain(part)
  }

  test('a good one, with a byte order mark', async () => {
    expect(await readConfig(await folder('good', `\uFEFF${text}`, '{"do_sample": true, "eos_token_id": 7}'))).toEqual(
      parseConfig(JSON.parse(text), { do_sample: true, eos_token_id: 7 }),
    )
  })

  test('no folder, no config.json, a file', async () => {
    await rejects(join(root, 'absent'), 'ERR_CONFIG_MISSING', 'no such folder', 'absent')
    await rejects(root, 'ERR_CONFIG_MISSING', 'has no config.json')
    await writeFile(join(root, 'model.gguf'), 'GGUF')
    await rejects(join(root, 'model.gguf'), 'ERR_CONFIG_MISSING', 'not a folder')
  })

  test('not JSON: the file and the place', async () => {
    const broken = text.replace('"hidden_act": "silu",', '"hidden_act": silu,')
    const line = text.split('\n').findIndex(row => row.includes('hidden_act')) + 1
    await rejects(await folder('broken', broken), 'ERR_CONFIG_JSON', 'broken/config.json', `line ${line}, column 17`, 'silu')
    await rejects(await folder('cut', text.slice(0, 100)), 'ERR_CONFIG_JSON', 'the file ends')
    await rejects(
      await folder('generation', text, '{"do_sample": True}'),
      'ERR_CONFIG_JSON',
      'generation_config.json',
      'line 1, column 15',
    )
  })

  test('not readable: a folder of that name, too large, not UTF-8', async () => {
    await mkdir(join(root, 'odd', 'config.json'), { recursive: true })
    await rejects(join(root, 'odd'), 'ERR_CONFIG_UNREADABLE', 'not a regular file')
    await rejects(await folder('large', text + ' '.repeat(2 ** 20)), 'ERR_CONFIG_UNREADABLE', 'at most 1048576')
    await rejects(await folder('latin', Uint8Array.of(0x7b, 0xe9, 0x7d)), 'ERR_CONFIG_UNREADABLE', 'UTF-8')
  })

  test('errors in a field name the path', async () => {
    await rejects(await folder('field', text.replace('4096', '"wide"')), 'ERR_CONFIG_FIELD', join(root, 'field', 'config.json'))
    await rejects(await folder('both', text, '{"top_p": 2}'), 'ERR_CONFIG_FIELD', join(root, 'both', 'generation_config.json'))
  })
})

describe('where text stops being JSON', () => {
  test.each<[text: string, offset: number]>([
    ['', 0],
    ['  \n', 3],
    ['{"a": x}', 6],
    ['{"a": 1,}', 8],
    ['{"a" 1}', 5],
    ['{a: 1}', 1],
    ["{'a': 1}", 1],
    ['[1 2]', 3],
    ['[1,, 2]', 3],
    ['[1, 2', 5],
    ['[1}', 2],
    ['{]', 1],
    ['{"a": 1} // no', 9],
    ['{"a": "b\n"}', 6],
    ['"\\x"', 0],
    ['{"a": NaN}', 6],
    ['[01]', 2],
    ['[.5]', 1],
    ['{"a": {"b": [1, {"c": null}, tru]}}', 29],
  ])('%j', (bad, offset) => {
    expect(() => JSON.parse(bad)).toThrow()
    expect(jsonErrorOffset(bad)).toBe(offset)
  })

  test('agrees with V8 where V8 says: every character of a config left out', () => {
    let compared = 0
    for (let i = 0; i < text.length; i++) {
      const bad = text.slice(0, i) + text.slice(i + 1)
      let message = ''
      try {
        JSON.parse(bad)
      } catch (error) {
        message = (error as Error).message
      }
      if (message === '') continue
      const position = /^(?:Expected|Unexpected).* in JSON at position (\d+)/.exec(message)?.[1]
      if (position === undefined) expect(jsonErrorOffset(bad)).toBeLessThanOrEqual(bad.length)
      else expect([i, jsonErrorOffset(bad)]).toEqual([i, Number(position)])
      compared += position === undefined ? 0 : 1
    }
    expect(compared).toBeGreaterThan(50)
  })

  test('a long string and deep nesting are no trouble', () => {
    expect(jsonErrorOffset(`["${'\\u00e9'.repeat(100000)}" 1]`)).toBe(600004)
    expect(jsonErrorOffset('['.repeat(500000))).toBe(500000)
  })

  test('the message of an error has file, line and column', () => {
    expect(() => parseJson('{\n  "a": tru\n}', 'x.json', 'ERR_TOKENIZER')).toThrow(
      expect.objectContaining({ code: 'ERR_TOKENIZER_JSON', message: 'x.json: not JSON: found "tru\\n}" at line 2, column 8.' }),
    )
  })
})
