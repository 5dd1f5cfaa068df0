/** Checkpoint names -> the weights of the forward pass: the only file that knows them. Fuses q | k | v and gate | up. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Device, F32, Weight } from '../binding.d.ts'
import { invFreq, type LlamaConfig } from './config.ts'
import { DeviceError, ModelError } from './errors.ts'
import { readJson } from './json.ts'

/** One transformer layer. */
export interface Layer {
  /** [dim] */
  readonly attnNorm: Weight
  /** [(heads + 2 kvHeads) headDim, dim]: q, k, v */
  readonly wqkv: Weight
  /** [dim, heads headDim] */
  readonly wo: Weight
  /** [dim] */
  readonly ffnNorm: Weight
  /** [2 hidden, dim]: gate, up */
  readonly wGateUp: Weight
  /** [dim, hidden] */
  readonly wDown: Weight
}

/** What the forward pass needs. */
export interface Model {
  /** [vocab, dim] */
  readonly embed: Weight
  readonly layers: readonly Layer[]
  /** [dim] */
  readonly norm: Weight
  /** [vocab, dim]; the embedding itself when the config says tied */
  readonly head: Weight
  /** [headDim / 2] */
  readonly invFreq: F32
  readonly eps: number
}

export interface LoadWeightsOptions {
  /** Bytes of device memory that something else will need: the key/value cache. */
  readonly reserve?: number | undefined
  /** Bytes of weights that are where they are computed with: read from the files, and copied to a GPU. */
  readonly onProgress?: ((bytes: number, total: number) => void) | undefined
  readonly signal?: AbortSignal | undefined
}

/** Gives the weight of a name and shape: from files, or random. */
type Source = (name: string, shape: readonly number[]) => Weight

function assemble(device: Device, config: LlamaConfig, tensor: Source): Model {
  const { layers, heads, kvHeads, headDim, dim, hidden, vocab } = config
  const frequencies = device.tensor('f32', [headDim / 2])
  device.write(frequencies, invFreq(config))
  const embed = tensor('model.embed_tokens.weight', [vocab, dim])
  return {
    embed,
    layers: Array.from({ length: layers }, (_, i) => {
      const at = (name: string, ...shape: number[]) => tensor(`model.layers.${i}.${name}.weight`, shape)
      return {
        attnNorm: at('input_layernorm', dim),
        wqkv: device.stack(
          at('self_attn.q_proj', heads * headDim, dim),
          at('self_attn.k_proj', kvHeads * headDim, dim),
          at('self_attn.v_proj', kvHeads * headDim, dim),
        ),
        wo: at('self_attn.o_proj', dim, heads * headDim),
        ffnNorm: at('post_attention_layernorm', dim),
        wGateUp: device.stack(at('mlp.gate_proj', hidden, dim), at('mlp.up_proj', hidden, dim)),
        wDown: at('mlp.down_proj', dim, hidden),
      }
    }),
    norm: tensor('model.norm.weight', [dim]),
    head: config.tied ? embed : tensor('lm_head.weight', [vocab, dim]),
    invFreq: frequencies,
    eps: config.eps,
  }
}

/**
 * The weights of a model folder: model.safetensors, or the shards that model.safetensors.index.json lists.
 * @throws ModelError ERR_WEIGHTS_MISSING, ERR_WEIGHTS_INDEX, ERR_WEIGHTS_TENSOR, ERR_WEIGHTS_LAYERS, ERR_WEIGHTS_DTYPE, ERR_WEIGHTS_SHAPE,
 *   ERR_WEIGHTS_DUPLICATE, ERR_MODEL_FILE_*, ERR_SAFETENSORS_*; the reason of an aborted signal
 */
export async function loadModel(
  device: Device,
  folder: string,
  config: LlamaConfig,
  options: LoadWeightsOptions = {},
): Promise<Model> {
  const { files, index } = await weightFiles(folder)
  const tensors = await device.weights(files, options)
  if (index) checkIndex(index, tensors)
  refuseMoreLayers(tensors, config.layers)
  const model = assemble(device, config, (name, shape) => {
    if (index && !index.map.has(name)) {
      const why = 'it is incomplete, or of another model; download it again'
      throw new ModelError('ERR_WEIGHTS_INDEX', `${index.path}: weight_map has no ${name} [${shape}]; ${why}`)
    }
    const weight = tensors.get(name)
    if (!weight) {
      const tie = name === 'lm_head.weight' ? ', and config.json does not say tie_word_embeddings' : ''
      throw new ModelError('ERR_WEIGHTS_TENSOR', `${folder}: no file has the tensor ${name} [${shape}]${tie}`)
    }
    if (weight.shape.length !== shape.length || weight.shape.some((size, i) => size !== shape[i])) {
      const found = `${name} is [${weight.shape}], expected [${shape}] by config.json`
      throw new ModelError('ERR_WEIGHTS_SHAPE', `${weight.file}: ${found}; the two do not belong together`)
    }
    if (weight.dtype !== 'BF16') {
      const way = `convert it: model.to(torch.bfloat16).save_pretrained(folder) in transformers`
      throw new ModelError('ERR_WEIGHTS_DTYPE', `${weight.file}: ${name} is ${weight.dtype}, expected BF16; ${way}`)
    }
    return weight
  })
  await upload(device, model, options)
  return model
}

/** So many weights are on their way to a device at once: one is copied, the next ones are read. */
const underWay = 3

/**
 * Brings the weights to a device with memory of its own, in the order in which they are needed.
 * @throws DeviceError ERR_OUT_OF_MEMORY before anything is copied
 */
async function upload(device: Device, model: Model, { reserve = 0, onProgress, signal }: LoadWeightsOptions): Promise<void> {
  const free = device.freeMemory
  if (free === Number.POSITIVE_INFINITY) return
  const layers = model.layers.flatMap(layer => Object.values(layer) as Weight[])
  const weights = [...new Set([model.embed, ...layers, model.norm, model.head])]
  const bytes = (weight: Weight) => 2 * weight.shape.reduce((a, b) => a * b)
  const total = weights.reduce((sum, weight) => sum + bytes(weight), 0)
  if (total + reserve > free) {
    const needs = `${device.name}: the weights take ${total} bytes and the key/value cache ${reserve}`
    throw new DeviceError('ERR_OUT_OF_MEMORY', `${needs}, but only ${free} are free; lower contextLength or kvCacheTokens`)
  }

  let stop!: () => void
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal!.reason)
  })
  aborted.catch(() => {})
  signal?.throwIfAborted()
  signal?.addEventListener('abort', stop)
  const uploads: { readonly size: number; readonly there: Promise<void> }[] = []
  try {
    let done = 0
    onProgress?.(0, total)
    for (let next = 0; done < total; ) {
      while (next < weights.length && uploads.length < underWay) {
        const there = device.upload(weights[next]!)
        there.catch(() => {}) // when another one fails, nobody waits for it
        uploads.push({ size: bytes(weights[next++]!), there })
      }
      const { size, there } = uploads.shift()!
      await Promise.race([there, aborted])
      done += size
      onProgress?.(done, total)
      signal?.throwIfAborted()
    }
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}

/** A model with its last layers left out computes, and says nonsense. */
function refuseMoreLayers(tensors: ReadonlyMap<string, Weight>, layers: number): void {
  for (const [name, { file }] of tensors) {
    const layer = Number(/^model\.layers\.(\d+)\./.exec(name)?.[1] ?? 0)
    if (layer < layers) continue
    const found = `has ${name}, but num_hidden_layers in config.json is ${layers}`
    throw new ModelError('ERR_WEIGHTS_LAYERS', `${file}: ${found}; the two do not belong together`)
  }
}

/** Random weights in memory (std 0.02, norms std 1), to measure a shape without its files. */
export function randomModel(device: Device, config: LlamaConfig, seed = 1): Model {
  let next = seed * 100_000
  return assemble(device, config, (_, shape) => device.random(shape, next++, shape.length === 1 ? 1 : 0.02))
}

interface ShardIndex {
  readonly path: string
  /** tensor name -> file name */
  readonly map: ReadonlyMap<string, string>
  readonly folder: string
}

async function weightFiles(folder: string): Promise<{ files: string[]; index?: ShardIndex }> {
  const path = join(folder, 'model.safetensors.index.json')
  const json = await readJson(path, { prefix: 'ERR_WEIGHTS', limit: 2 ** 26 })
  if (json === undefined) {
    const file = join(folder, 'model.safetensors')
    if (await exists(file)) return { files: [file] }
    const wanted = 'model.safetensors, or model.safetensors.index.json with its shards'
    throw new ModelError('ERR_WEIGHTS_MISSING', `${folder}: no weights found, expected ${wanted}`)
  }
  const weightMap = (json as { weight_map?: unknown } | null)?.weight_map
  if (typeof weightMap !== 'object' || weightMap === null || Array.isArray(weightMap)) {
    throw new ModelError('ERR_WEIGHTS_INDEX', `${path}: weight_map is missing, expected an object of tensor name to file name`)
  }
  const map = new Map<string, string>()
  for (const [name, file] of Object.entries(weightMap)) {
    // A file name, not a path: an index must not reach outside of its folder.
    if (typeof file !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(file)) {
      const found = JSON.stringify(file)
      throw new ModelError(
        'ERR_WEIGHTS_INDEX',
        `${path}: weight_map["${name}"] is ${found}, expected the name of a .safetensors file`,
      )
    }
    map.set(name, file)
  }
  if (map.size === 0) throw new ModelError('ERR_WEIGHTS_INDEX', `${path}: weight_map is empty`)
  const names = [...new Set(map.values())].sort()
  for (const name of names) {
    if (await exists(join(folder, name))) continue
    const tensor = [...map].find(([, file]) => file === name)![0]
    const message = `${path} says that ${tensor} is in ${name}, but ${folder} has no such file; download it again`
    throw new ModelError('ERR_WEIGHTS_SHARD', message)
  }
  return { files: names.map(name => join(folder, name)), index: { path, map, folder } }
}

function checkIndex(index: ShardIndex, tensors: ReadonlyMap<string, Weight>): void {
  for (const [name, file] of index.map) {
    const found = tensors.get(name)?.file
    if (found === join(index.folder, file)) continue
    const where = found ? `it is in ${found}` : 'it is not there'
    throw new ModelError('ERR_WEIGHTS_INDEX', `${index.path} says that ${name} is in ${file}, but ${where}`)
  }
}

const exists = async (path: string): Promise<boolean> => (await stat(path).catch(() => undefined)) !== undefined
