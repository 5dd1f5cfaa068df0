/** Loads a model for one conversation at a time, with progress on stderr. */
import { builtinConfigs } from '../config.ts'
import { ModelError } from '../errors.ts'
import type { Llama } from '../llama.ts'
import type { LoadFlags } from './options.ts'
import type { Stop } from './stop.ts'
import { Progress } from './terminal.ts'

export interface Loaded {
  readonly llama: Llama
  /** Of Llama.load alone. */
  readonly milliseconds: number
}

export async function load(model: string, flags: LoadFlags, stop: Stop): Promise<Loaded> {
  const { Llama } = await import('../index.ts') // here, because it loads the addon, which inspect does not need
  const { device, threads, context: contextLength } = flags
  const progress = new Progress(`loading ${model}`)
  const onProgress = (bytes: number, total: number) => progress.update(bytes, total)
  const started = performance.now()
  try {
    const options = { device, threads, contextLength, maxSequences: 1, signal: stop.signal, onProgress }
    const llama = await Llama.load(model, options)
    return { llama, milliseconds: performance.now() - started }
  } catch (error) {
    throw withHint(error, model)
  } finally {
    progress.end()
  }
}

/** The error, with the names that would have worked where there is no such folder. */
export function withHint(error: unknown, model: string, names: readonly string[] = ['demo']): unknown {
  if (!(error instanceof ModelError) || error.code !== 'ERR_CONFIG_MISSING') return error
  const shape = Object.hasOwn(builtinConfigs, model) ? `; ${model} is a shape without weights, for cria inspect` : ''
  return new ModelError(error.code, `${error.message} Built in: ${names.join(', ')}${shape}`, { cause: error })
}
