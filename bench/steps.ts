/** Decoding and prefill as a user sees them, through the whole engine; and what they cannot be faster than. */

import type { LlamaConfig } from '../lib/config.ts'
import { type InspectOptions, inspect } from '../lib/inspect.ts'
import type { Llama } from '../lib/llama.ts'
import { promptOf } from './harness.ts'

/** Seconds from the start to the first token of the first sequence, and between tokens of all. */
export interface DecodeTimes {
  readonly first: number
  readonly perToken: readonly number[]
}

export async function decode(llama: Llama, batch: number, prompt: number, tokens: number): Promise<DecodeTimes> {
  const begin = performance.now()
  const arrivals = await Promise.all(
    Array.from({ length: batch }, async (_, sequence) => {
      const times: number[] = []
      const ids = promptOf(prompt, llama.config.vocab, sequence)
      for await (const _piece of llama.generate(ids, { maxTokens: tokens + 1, temperature: 0, ignoreEos: true }))
        times.push(performance.now())
      return times
    }),
  )
  const perToken = arrivals.flatMap(times => times.slice(1).map((at, i) => (at - times[i]!) / 1000))
  return { first: (arrivals[0]![0]! - begin) / 1000, perToken }
}

/** Seconds to the first token of every sequence; `repeat` times, each with other prompts. */
export async function prefill(llama: Llama, batch: number, prompt: number, repeat: number): Promise<number[]> {
  const seconds: number[] = []
  for (let i = 0; i <= repeat; i++) {
    const begin = performance.now()
    const prompts = Array.from({ length: batch }, (_, sequence) => promptOf(prompt, llama.config.vocab, sequence + i * batch))
    await Promise.all(prompts.map(ids => llama.generate(ids, { maxTokens: 1, temperature: 0, ignoreEos: true })))
    if (i > 0) seconds.push((performance.now() - begin) / 1000) // the first one records the program and touches its memory
  }
  return seconds
}

/** Bytes that a step of decoding reads at the least: all linears, the head, and the keys and values. */
export function decodeBytes(config: LlamaConfig, batch: number, context: number): number {
  const { weights, kv } = inspect(config)
  return weights.streamedBytes + batch * kv.bytesPerToken * context
}

/**
 * Seconds of a forward pass whose operations follow each other, each as fast as memory and arithmetic allow: weights read
 * once, keys and values of each sequence, activations free.
 */
export function serialRoofline(
  config: LlamaConfig,
  batch: number,
  options: InspectOptions,
  ceilings: { bandwidth: number; flops: number },
): number {
  const steps = inspect(config, { ...options, logits: 'last' }).steps.filter(({ op }) => op === 'linear' || op === 'attention')
  return steps.reduce((sum, { times, bytes, flops }) => {
    const moved = bytes.weights + batch * bytes.kv
    return sum + times * Math.max(moved / ceilings.bandwidth, (batch * flops) / ceilings.flops)
  }, 0)
}
