// Model folders that are damaged, each a copy of a fixture: what load says, and that nothing else suffers.
import { cp, mkdir, mkdtemp, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import type { CriaError } from '../../lib/errors.ts'
import type { Completion } from '../../lib/generation.ts'
import { Llama } from '../../lib/llama.ts'
import { safetensors, type TensorData } from './safetensors_files.ts'

const fixtures = join(import.meta.dirname, '../fixtures')
const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const
const index = 'model.safetensors.index.json'
const cpu = { device: 'cpu', threads: 1 }
const greedy = { temperature: 0, ignoreEos: true, maxTokens: 6 }
const prompt = [5, 6, 7, 8]

let root = ''
let healthy: Llama
let before: Completion
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'cria-weights-'))
  healthy = await Llama.load(join(fixtures, 'llama3-hd128'), cpu)
  before = await healthy.generate(prompt, greedy)
})
afterEach(async () => {
  expect(await healthy.generate(prompt, greedy)).toEqual(before) // a model that was loaded before goes on
})
afterAll(async () => {
  await healthy.close()
  await rm(root, { recursive: true })
})

async function readTensors(path: string): Promise<TensorData[]> {
  const bytes = await readFile(path)
  const start = 8 + Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.toString('utf8', 8, start)) as Record<string, Header>
  return Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [from, to],
        },
      ]) => ({
        name,
        dtype,
        shape,
        data: bytes.subarray(start + from, start + to),
      }),
    )
}
interface Header {
  dtype: string
  shape: number[]
  data_offsets: [number, number]
}
type Damage = (folder: string) => Promise<unknown>

/** Rewrites a file with its tensors changed; undefined leaves one out. */
const tensors =
  (change: (tensor: TensorData) => TensorData | undefined, file = 'model.safetensors'): Damage =>
  async folder => {
    const all = await readTensors(join(folder, file))
    await writeFile(join(folder, file), safetensors(all.map(change).filter(tensor => tensor !== undefined)))
  }
const one = (name: string, change: (tensor: TensorData) => TensorData | undefined) =>
  tensors(tensor => (tensor.name === name ? change(tensor) : tensor))
const json =
  (file: string, change: (value: Record<string, never>) => unknown): Damage =>
  async folder => {
    const path = join(folder, file)
    await writeFile(path, JSON.stringify(change(JSON.parse(await readFile(path, 'utf8')))))
  }
const weightMap = (change: (map: Record<string, unknown>) => unknown) =>
  json(index, value => ({ ...value, weight_map: change(value.weight_map!) }))
const write =
  (file: string, content: string | Uint8Array): Damage =>
  folder =>
    writeFile(join(folder, file), content)
const remove =
  (file: string): Damage =>
  folder =>
    rm(join(folder, file))

let copies = 0
async function damaged(fixture: string, damage: Damage): Promise<string> {
  const folder = join(root, String(copies++))
  await cp(join(fixtures, fixture), folder, { recursive: true })
  await damage(folder)
  return folder
}

const wk = 'model.layers.1.self_attn.k_proj.weight'
interface Case {
  what: string
  damage: Damage
  code: string | RegExp
  /** In the message. */
  says: (string | RegExp)[]
}
const single: Case[] = [
  { what: 'no config.json', damage: remove('config.json'), code: 'ERR_CONFIG_MISSING', says: ['it has no config.json'] },
  {
    what: 'a config.json of another architecture',
    damage: json('config.json', c => ({ ...c, model_type: 'gpt2', architectures: ['GPT2LMHeadModel'] })),
    code: 'ERR_CONFIG_ARCHITECTURE',
    says: ['config.json', '"gpt2"', 'LlamaForCausalLM'],
  },
  {
    what: 'no weights',
    damage: remove('model.safetensors'),
    code: 'ERR_WEIGHTS_MISSING',
    says: ['no weights found', 'expected model.safetensors, or model.safetensors.index.json'],
  },
  {
    what: 'weights of another format',
    damage: folder => rename(join(folder, 'model.safetensors'), join(folder, 'pytorch_model.bin')),
    code: 'ERR_WEIGHTS_MISSING',
    says: ['expected model.safetensors'],
  },
  {
    what: 'a config.json of another size',
    damage: json('config.json', c => ({ ...c, intermediate_size: 384 })),
    code: 'ERR_WEIGHTS_SHAPE',
    says: ['model.safetensors', 'model.layers.0.mlp.gate_proj.weight is [512,256], expected [384,256] by config.json'],
  },
  {
    what: 'a layer too few in the file',
    damage: json('config.json', c => ({ ...c, num_hidden_layers: 3 })),
    code: 'ERR_WEIGHTS_TENSOR',
    says: ['model.layers.2.input_layernorm.weight [256]'],
  },
  {
    what: 'a matrix lying on its side',
    damage: one(wk, tensor => ({ ...tensor, shape: [...tensor.shape].reverse() })),
    code: 'ERR_WEIGHTS_SHAPE',
    says: ['model.safetensors', `${wk} is [256,128], expected [128,256]`],
  },
  {
    what: 'a vector as a matrix',
    damage: one('model.norm.weight', tensor => ({ ...tensor, shape: [1, 256] })),
    code: 'ERR_WEIGHTS_SHAPE',
    says: ['model.norm.weight is [1,256], expected [256]'],
  },
  ...['F16', 'I16', 'U16'].map(dtype => ({
    what: `a tensor of ${dtype}`,
    damage: one(wk, tensor => ({ ...tensor, dtype })),
    code: 'ERR_WEIGHTS_DTYPE',
    says: ['model.safetensors', `${wk} is ${dtype}, expected BF16`, 'torch.bfloat16'],
  })),
  {
    what: 'everything in float32',
    damage: tensors(tensor => ({ ...tensor, dtype: 'F32', data: Buffer.concat([tensor.data, tensor.data]) })),
    code: 'ERR_WEIGHTS_DTYPE',
    says: [/is F32, expected BF16/],
  },
  {
    what: 'a tensor that is not there',
    damage: one(wk, () => undefined),
    code: 'ERR_WEIGHTS_TENSOR',
    says: [`no file has the tensor ${wk} [128,256]`],
  },
  {
    what: 'more layers than config.json says',
    damage: json('config.json', c => ({ ...c, num_hidden_layers: 1 })),
    code: 'ERR_WEIGHTS_LAYERS',
    says: ['model.safetensors', /has model\.layers\.[1-9]\S*, but num_hidden_layers in config\.json is 1;/],
  },
  {
    what: 'a tokenizer with more tokens than the embedding',
    damage: folder => cp(join(import.meta.dirname, '../../lib/demo/tokenizer.json'), join(folder, 'tokenizer.json')),
    code: 'ERR_TOKENIZER_SIZE',
    says: [/tokenizer\.json has token 4\d+ \("<\|\S+\|>"\), but vocab_size in config\.json is 512;/],
  },
  {
    what: 'a file cut off in its data',
    damage: folder => truncate(join(folder, 'model.safetensors'), 100_000),
    code: /^ERR_SAFETENSORS_/,
    says: ['model.safetensors', 'are missing'],
  },
  {
    what: 'a file cut off in its header',
    damage: folder => truncate(join(folder, 'model.safetensors'), 100),
    code: /^ERR_SAFETENSORS_/,
    says: ['model.safetensors'],
  },
  { what: 'an empty file', damage: write('model.safetensors', ''), code: /^ERR_SAFETENSORS_/, says: ['model.safetensors'] },
  {
    what: 'a pointer of git lfs',
    damage: write('model.safetensors', 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2888376\n'),
    code: /^ERR_SAFETENSORS_/,
    says: ['model.safetensors'],
  },
  {
    what: 'a folder in place of the file',
    damage: async folder => {
      await rm(join(folder, 'model.safetensors'))
      await mkdir(join(folder, 'model.safetensors'))
    },
    code: /^ERR_MODEL_FILE/,
    says: ['model.safetensors'],
  },
  {
    what: 'a tokenizer.json that is not JSON',
    damage: write('tokenizer.json', '{"model": {'),
    code: 'ERR_TOKENIZER_JSON',
    says: ['tokenizer.json', 'line 1, column 12'],
  },
  {
    what: 'a tokenizer.json of another kind',
    damage: write('tokenizer.json', '{"model": {"type": "Unigram", "vocab": []}}'),
    code: /^ERR_TOKENIZER_/,
    says: ['tokenizer.json', 'Unigram'],
  },
]

const escaping = [
  '../x.safetensors',
  '/tmp/x.safetensors',
  'a/../../x.safetensors',
  '..\\x.safetensors',
  'x\u0000.safetensors',
  'x.bin',
  '',
  5,
  null,
]
const q = 'model.layers.0.self_attn.q_proj.weight'
const sharded: Case[] = [
  {
    what: 'a shard that is not there',
    damage: remove(shards[1]),
    code: 'ERR_WEIGHTS_SHARD',
    says: [index, /model\.\S+ is in model-00002-of-00002\.safetensors, but \S+ has no such file/],
  },
  ...escaping.map(name => ({
    what: `an index that says ${JSON.stringify(name)}`,
    damage: weightMap(map => ({ ...map, [q]: name })),
    code: 'ERR_WEIGHTS_INDEX',
    says: [index, `weight_map["${q}"] is ${JSON.stringify(name)}, expected the name of a .safetensors file`],
  })),
  {
    what: 'a tensor listed in the wrong shard',
    damage: weightMap(map => ({ ...map, [q]: shards.find(name => name !== map[q]) })),
    code: 'ERR_WEIGHTS_INDEX',
    says: [index, /q_proj\.weight is in model-0000\d-of-00002\.safetensors, but it is in \S+model-0000\d-of-00002\.safetensors/],
  },
  {
    what: 'a tensor listed that no shard has',
    damage: weightMap(map => ({ ...map, 'model.extra': shards[0] })),
    code: 'ERR_WEIGHTS_INDEX',
    says: [index, `model.extra is in ${shards[0]}, but it is not there`],
  },
  {
    what: 'a tensor in two shards',
    damage: async folder => {
      const [first, second] = await Promise.all(shards.map(name => readTensors(join(folder, name))))
      await writeFile(join(folder, shards[1]), safetensors([...second!, first![0]!]))
    },
    code: 'ERR_WEIGHTS_DUPLICATE',
    says: [...shards],
  },
  {
    what: 'a shard that the index does not name',
    damage: weightMap(map => Object.fromEntries(Object.entries(map).filter(([, file]) => file !== shards[1]))),
    code: 'ERR_WEIGHTS_INDEX',
    says: [index, /weight_map has no model\.\S+ \[\d+(,\d+)?\]; it is incomplete, or of another model/],
  },
  { what: 'an index that is not JSON', damage: write(index, '{'), code: 'ERR_WEIGHTS_JSON', says: [index, 'line 1, column 2'] },
  { what: 'an index of nothing', damage: weightMap(() => ({})), code: 'ERR_WEIGHTS_INDEX', says: [index, 'weight_map is empty'] },
  ...['null', '[]', '{}', '{"weight_map": []}', '{"weight_map": "model.safetensors"}'].map(content => ({
    what: `an index that is ${content}`,
    damage: write(index, content),
    code: 'ERR_WEIGHTS_INDEX',
    says: [index, 'weight_map is missing, expected an object'],
  })),
]

describe('a folder with', () => {
  const cases = [
    ...single.map(c => ({ ...c, fixture: 'llama3-hd128' })),
    ...sharded.map(c => ({ ...c, fixture: 'llama31-hd64-tied-sharded' })),
  ]
  test.each(cases)('$what is refused', async ({ fixture, damage, code, says }) => {
    const folder = await damaged(fixture, damage)
    const error = await Llama.load(folder, cpu).then(
      llama => llama.close().then(() => new Error('it was loaded')),
      (thrown: CriaError) => thrown,
    )
    expect(error).toMatchObject({ name: 'ModelError', code: typeof code === 'string' ? code : expect.stringMatching(code) })
    expect(error.message).toContain(folder)
    for (const part of says) expect(error.message).toMatch(part)
    expect(error.message).toMatch(/^[\x20-\x7e]{20,600}$/)
  })
})

describe('the head', () => {
  const logits = async (folder: string) => {
    await using llama = await Llama.load(folder, cpu)
    return Buffer.from((await llama.logits(prompt)).buffer).toString('hex')
  }
  const tied = (value: boolean) => json('config.json', c => ({ ...c, tie_word_embeddings: value }))
  const withoutHead = one('lm_head.weight', () => undefined)

  test('tied or not, in the file or not (F33)', async () => {
    const own = await logits(await damaged('llama3-hd128', tied(false)))
    const embed = (await readTensors(join(fixtures, 'llama3-hd128/model.safetensors'))).find(t => t.name.includes('embed'))!
    const copied = one('lm_head.weight', tensor => ({ ...tensor, data: embed.data }))
    const embedding = await logits(await damaged('llama3-hd128', copied))
    expect(embedding).not.toBe(own)
    const untie: Damage = async folder => {
      await tied(true)(folder)
    }
    expect(await logits(await damaged('llama3-hd128', untie))).toBe(embedding) // both there: the config decides
    const alone: Damage = async folder => {
      await tied(true)(folder)
      await withoutHead(folder)
    }
    expect(await logits(await damaged('llama3-hd128', alone))).toBe(embedding)
    await expect(logits(await damaged('llama3-hd128', withoutHead))).rejects.toMatchObject({
      name: 'ModelError',
      code: 'ERR_WEIGHTS_TENSOR',
      message: expect.stringContaining('lm_head.weight [512,256], and config.json does not say tie_word_embeddings') as never,
    })
  })
})

describe('weights that are not numbers', () => {
  test('a NaN in one generation is an error of that one, and stays in no page (F18)', async () => {
    const poison = one('model.embed_tokens.weight', tensor => {
      const data = Buffer.from(tensor.data)
      data.writeUInt16LE(0x7fc0, 2 * (256 * 9 + 3)) // token 9
      return { ...tensor, data }
    })
    await using llama = await Llama.load(await damaged('llama3-hd128', poison), { ...cpu, kvCacheTokens: 64, pageSize: 8 })
    for (let round = 0; round < 3; round++) {
      const wrong = llama.generate([9, ...prompt], { ...greedy, maxTokens: 20 })
      const neighbour = llama.generate(prompt, greedy)
      const long = llama.generate(prompt.concat(prompt, prompt), { ...greedy, maxTokens: 30 })
      await expect(Promise.resolve(wrong)).rejects.toMatchObject({
        name: 'NumericError',
        code: 'ERR_NOT_FINITE',
        message: expect.stringContaining('the logits after 5 tokens are not finite') as never,
      })
      expect(await neighbour).toEqual(before)
      expect(await long).toEqual(await healthy.generate(prompt.concat(prompt, prompt), { ...greedy, maxTokens: 30 }))
    }
    expect(llama.stats().pages.used).toBe(0)
  })
})
