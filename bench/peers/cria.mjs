// node cria.mjs FOLDER [options]: cria on FOLDER/model.safetensors, through its public API (build it first: `npm run setup`).
import { measure } from './measure.mjs'

await measure('cria', async ({ folder, threads, prefill, contextSize }) => {
  const { Llama } = await import('../../dist/lib/index.js')
  // Every repetition has the same prompt: when there is a prefix cache, turn it off here.
  const llama = await Llama.load(folder, {
    device: 'cpu',
    threads,
    contextLength: contextSize,
    maxSequences: 1,
    maxBatchTokens: Math.max(512, prefill),
    kvCacheTokens: contextSize,
  })

  async function* generate(prompt, count) {
    for await (const piece of llama.generate(prompt, { maxTokens: count, temperature: 0, ignoreEos: true })) yield* piece.tokens
  }

  async function about() {
    const { default: own } = await import('../../package.json', { with: { type: 'json' } })
    return { version: `cria ${own.version}` }
  }

  return { generate, about, close: () => llama.close() }
})
