// node make-model.mjs SHAPE FOLDER: the same random bf16 model for both engines, as safetensors and as GGUF.
import { access, mkdir, open, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import * as gguf from './gguf.mjs'
import { bos, config, eos, shapes, tensors } from './shape.mjs'
import { blocks } from './weights.mjs'

const exists = path =>
  access(path).then(
    () => true,
    () => false,
  )
const json = value => `${JSON.stringify(value, null, 2)}\n`

/** All or nothing: another process never sees half a file. */
async function writeAtomically(path, chunks) {
  if (await exists(path)) return
  const temporary = `${path}.${process.pid}.tmp`
  const file = await open(temporary, 'w')
  try {
    for (const chunk of chunks) await file.writeFile(chunk)
    await file.close()
    await rename(temporary, path)
  } catch (error) {
    await file.close().catch(() => {})
    await rm(temporary, { force: true })
    throw error
  }
}

function* safetensors(shape) {
  const table = { __metadata__: { format: 'pt' } }
  let offset = 0
  for (const { hf, norm, rows, columns } of tensors(shape)) {
    const end = offset + 2 * rows * columns
    table[hf] = { dtype: 'BF16', shape: norm ? [columns] : [rows, columns], data_offsets: [offset, end] }
    offset = end
  }
  const text = Buffer.from(JSON.stringify(table))
  const header = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, ' ')
  header.writeBigUInt64LE(BigInt(header.length - 8))
  text.copy(header, 8)
  yield header
  yield* blocks(shape, false)
}

function* ggufFile(shape, name) {
  yield gguf.header(shape, name)
  let size = 0
  for (const block of blocks(shape, true)) {
    yield block
    size += block.length
    const padding = gguf.padding(size) // a block is a whole number of alignments, or the end of a tensor
    if (padding) yield Buffer.alloc(padding)
    size += padding
  }
}

export async function makeModel(name, folder) {
  const shape = shapes[name]
  if (!shape) throw new Error(`no shape ${name}: there are ${Object.keys(shapes).join(', ')}`)
  await mkdir(folder, { recursive: true })
  await writeAtomically(join(folder, 'model.safetensors'), safetensors(shape))
  await writeAtomically(join(folder, 'model.gguf'), ggufFile(shape, name))
  await writeFile(join(folder, 'config.json'), json(config(shape)))
  await writeFile(
    join(folder, 'generation_config.json'),
    json({ bos_token_id: bos(shape), eos_token_id: eos(shape), do_sample: false }),
  )
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [name, folder] = process.argv.slice(2)
  if (!folder) {
    console.error('usage: node make-model.mjs SHAPE FOLDER')
    process.exit(1)
  }
  await makeModel(name, folder)
}
