/** How the kernels are started for the layers of Llama 3 8B, by their names; and how many blocks a multiprocessor then holds. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { KvLayer } from '../binding.d.ts'
import { builtinConfigs } from '../lib/config.ts'
import { packageRoot } from '../lib/package.ts'
import { Programs } from '../lib/programs.ts'
import { loadModel } from '../lib/weights.ts'
import { openAs } from './ops/conforms.ts'

export interface Started {
  readonly threads: number
  /** Bytes of dynamic shared memory, the most of all launches. */
  readonly shared: number
}

/** Without namespaces and arguments, which differ between the two machines. */
export const shortName = (demangled: string): string =>
  demangled.replace(/\(anonymous namespace\)::|cria::(cuda|simt)::|void |\(.*\)$/g, '')

// One layer and few tokens of the vocabulary: kernels are chosen by the rest.
const config = { ...builtinConfigs['llama3-8b'], layers: 1, vocab: 1024 }

/** Records, without running, decoding and prefill on the emulated GPU, for both generations of kernels. */
export async function launches(): Promise<Map<string, Started>> {
  const folder = mkdtempSync(join(tmpdir(), 'cria-launches-'))
  const names = new Map<string, string>()
  const library = join(packageRoot, 'build/Release/cria_simt.so')
  for (const line of execFileSync('nm', ['-C', '--defined-only', library], { encoding: 'utf8', maxBuffer: 2 ** 26 }).split(
    '\n',
  )) {
    const [, address, name] = /^0*([0-9a-f]+) [tT] (.*_kernel.*)$/.exec(line) ?? []
    if (address && name) names.set(`0x${address}`, shortName(name))
  }
  const found = new Map<string, Started>()
  try {
    emptyModel(folder)
    for (const arch of [80, 90])
      for (const fuse of [true, false]) {
        using device = openAs({ device: 'simt', simt: `arch=${arch}`, activations: 'bf16' }, 1, fuse)
        const model = await loadModel(device, folder, config)
        const cache = () => device.tensor('bf16', [64, config.kvHeads, 16, config.headDim]) as KvLayer['k']
        const programs = new Programs(device, model, [{ k: cache(), v: cache() }], {
          maxSequences: 64,
          maxPages: 64,
          maxRows: 64,
        })
        for (const tokens of [1, 8, 64, 128, 2048])
          for (const { kernel, block, shared } of programs.generation({ tokens }).program.launches) {
            const name = names.get(kernel) ?? kernel
            const threads = block.reduce((a, b) => a * b)
            found.set(name, { threads, shared: Math.max(shared, found.get(name)?.shared ?? 0) })
          }
      }
  } finally {
    rmSync(folder, { recursive: true })
  }
  return found
}

/** model.safetensors of zeros that take no room on the disk. */
function emptyModel(folder: string): void {
  const { heads, kvHeads, headDim, dim, hidden, vocab } = config
  const shapes: Record<string, number[]> = {
    'model.embed_tokens': [vocab, dim],
    'model.norm': [dim],
    lm_head: [vocab, dim],
    'model.layers.0.input_layernorm': [dim],
    'model.layers.0.self_attn.q_proj': [heads * headDim, dim],
    'model.layers.0.self_attn.k_proj': [kvHeads * headDim, dim],
    'model.layers.0.self_attn.v_proj': [kvHeads * headDim, dim],
    'model.layers.0.self_attn.o_proj': [dim, heads * headDim],
    'model.layers.0.post_attention_layernorm': [dim],
    'model.layers.0.mlp.gate_proj': [hidden, dim],
    'model.layers.0.mlp.up_proj': [hidden, dim],
    'model.layers.0.mlp.down_proj': [dim, hidden],
  }
  const header: Record<string, object> = {}
  let at = 0
  for (const [name, shape] of Object.entries(shapes)) {
    const bytes = 2 * shape.reduce((a, b) => a * b)
    header[`${name}.weight`] = { dtype: 'BF16', shape, data_offsets: [at, at + bytes] }
    at += bytes
  }
  const text = Buffer.from(JSON.stringify(header).padEnd(2048))
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(text.length))
  const path = join(folder, 'model.safetensors')
  writeFileSync(path, Buffer.concat([size, text]))
  truncateSync(path, 8 + text.length + at)
}

/** Of a multiprocessor: threads, blocks, bytes of shared memory; CUDA C++ Programming Guide, compute capabilities. */
const limits: Record<string, readonly [threads: number, blocks: number, shared: number]> = {
  sm_80: [2048, 32, 164 * 1024],
  sm_86: [1536, 16, 100 * 1024],
  sm_89: [1536, 24, 100 * 1024],
  sm_90a: [2048, 32, 228 * 1024],
  sm_100: [2048, 32, 228 * 1024],
  sm_120: [1536, 24, 100 * 1024],
}

/** Blocks that a multiprocessor holds at once: 65536 registers, given to warps in pieces of 256; 1 KB for the system a block. */
export function blocksFor(arch: string, registers: number, threads: number, shared: number): number {
  const [mostThreads, mostBlocks, bytes] = limits[arch]!
  const warps = Math.ceil(threads / 32)
  const byRegisters = Math.floor(Math.floor(65536 / (Math.ceil((registers * 32) / 256) * 256)) / warps)
  const byShared = Math.floor(bytes / (Math.ceil(shared / 128) * 128 + 1024))
  return Math.min(mostBlocks, Math.floor(mostThreads / (warps * 32)), byRegisters, byShared)
}
