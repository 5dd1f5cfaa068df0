// node llama-cpp.mjs FOLDER [options]: llama.cpp on FOLDER/model.gguf, through node-llama-cpp's fastest public way to tokens:
// `sequence.evaluate` with greedy sampling, no text. Defaults otherwise: mmap, flash attention auto (--flash on|off forces it),
// KV cache in float16. The batch holds the whole prompt.
import { readFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { measure } from './measure.mjs'

await measure('llama.cpp', async ({ folder, threads, prefill, contextSize, flash }) => {
  const { getLlama, LlamaLogLevel } = await import('node-llama-cpp')
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    maxThreads: threads,
    progressLogs: false,
    logLevel: LlamaLogLevel.error,
  })
  const model = await llama.loadModel({ modelPath: resolve(folder, 'model.gguf') })
  const flashAttention = flash === 'auto' ? 'auto' : flash === 'on'
  const context = await model.createContext({
    sequences: 1,
    contextSize,
    batchSize: Math.max(512, prefill),
    threads: { ideal: threads, min: threads },
    flashAttention,
  })
  const sequence = context.getSequence()

  async function* generate(prompt, count) {
    await sequence.clearHistory()
    for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
      yield token
      if (--count === 0) return
    }
  }

  /** By how much the best logit beats the second, at every generated token: where this is tiny, engines may disagree. */
  async function margins(prompt, tokens) {
    await sequence.clearHistory()
    const wanted = { generateNext: { logits: { filter: { tokens: [], includeTop: 2 } } } }
    const inputs = [...prompt.slice(0, -1), [prompt.at(-1), wanted], ...tokens.slice(0, -1).map(token => [token, wanted])]
    const outputs = await sequence.controlledEvaluate(inputs)
    return outputs.filter(Boolean).map(({ next }) => {
      const [best, second] = next.logits.values()
      return best - second
    })
  }

  async function about(prompt, tokens) {
    if (context.currentThreads !== threads) throw new Error(`${context.currentThreads} threads instead of ${threads}`)
    const maps = await readFile('/proc/self/maps', 'utf8')
    const own = JSON.parse(await readFile(new URL('node_modules/node-llama-cpp/package.json', import.meta.url), 'utf8'))
    return {
      version: `node-llama-cpp ${own.version}, llama.cpp ${llama.llamaCppRelease.release}`,
      backend: basename(maps.match(/\S*libggml-cpu\S*/)?.[0] ?? 'unknown'),
      system: llama.systemInfo,
      mmap: model.useMmap,
      flash: context.flashAttention,
      margins: await margins(prompt, tokens),
    }
  }

  return { generate, about, close: () => llama.dispose() }
})
