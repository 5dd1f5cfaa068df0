/** A checked request -> the sequence that the engine computes. */
import { TokenRules } from './edits.ts'
import type { Format, Grammars, Matcher } from './grammar.ts'
import { PromptLookup } from './lookup.ts'
import type { Request } from './options.ts'
import { Sequence } from './sequence.ts'

/** The tokens that a format allows next: unknown until it is compiled, and after each token for a moment. */
export class FormatMask {
  #matcher: Matcher | undefined
  #disposed = false

  get mask(): Int32Array | undefined {
    return this.#matcher?.mask
  }

  /** @throws InputError ERR_FORMAT_* */
  async open(grammars: Grammars, format: Format, signal: AbortSignal | undefined): Promise<void> {
    const matcher = await grammars.open(format, signal)
    if (this.#disposed) matcher.dispose()
    else this.#matcher = matcher
  }

  /** Takes the token that came. */
  accept(id: number, known: () => void, failed: (error: Error) => void): void {
    this.#matcher!.accept(id).then(known, error => this.#disposed || failed(error))
  }

  dispose(): void {
    this.#disposed = true
    this.#matcher?.dispose()
  }
}

export function sequenceOf(
  prompt: readonly number[],
  wanted: Request,
  mask: FormatMask | undefined,
  leader?: Sequence,
): Sequence {
  const { maxTokens, minTokens, sampling, logits, stopTokens, topLogprobs, promptLogprobs, priority, promptLookup } = wanted
  const { repetition, frequency, presence, bias } = logits
  const plain = repetition === 1 && frequency === 0 && presence === 0 && bias.size === 0 && minTokens === 0 && !mask
  const rules = plain ? undefined : new TokenRules({ ...logits, minTokens, stopTokens, mask })
  const lookup = promptLookup > 0 && plain ? new PromptLookup(promptLookup) : undefined
  return new Sequence(
    prompt,
    maxTokens,
    { ...sampling, rules, top: topLogprobs },
    {
      priority,
      ...(mask && { lockstep: true, ready: () => mask.mask !== undefined }),
      ...(promptLogprobs && { scoresPrompt: true }),
      ...(lookup && { guess: tokens => lookup.guess(tokens) }),
      ...(leader && { leader }),
    },
  )
}
