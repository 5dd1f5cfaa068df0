/** A request on its way through the engine: tokens become text, its end is found, its Generation hears of it. */
import { Detokenizer } from './detokenizer.ts'
import type { Job } from './engine.ts'
import type { Generation, PromptLogprob } from './generation.ts'
import type { Request } from './options.ts'
import type { TokenLogprob } from './results.ts'
import type { FinishReason, Sequence } from './sequence.ts'
import { StopMatcher } from './stops.ts'
import type { Tokenizer } from './tokenizer.ts'

export class Answer implements Job {
  readonly sequence: Sequence
  readonly #request: Request
  readonly #generation: Generation
  readonly #text: TextStream | undefined
  readonly #logprobs: number[] = []
  readonly #top: (readonly TokenLogprob[])[] = []
  readonly #prompt: PromptLogprob[] = []
  #full = ''
  /** Called once, when it ends. */
  onEnd: (() => void) | undefined
  /** Takes a token after which it goes on. */
  onToken: ((id: number) => void) | undefined

  constructor(sequence: Sequence, request: Request, generation: Generation, tokenizer: Tokenizer | undefined) {
    this.sequence = sequence
    this.#request = request
    this.#generation = generation
    this.#text = tokenizer && new TextStream(tokenizer, request.stop)
  }

  token(id: number, logprob: number, top: readonly TokenLogprob[]): FinishReason | undefined {
    const { stopTokens, minTokens } = this.#request
    this.#logprobs.push(logprob)
    this.#top.push(top)
    const stops = stopTokens.has(id)
    const piece = stops ? undefined : this.#text?.push(id, this.#logprobs.length >= minTokens)
    this.#give(piece?.text ?? '', [id], [logprob], [top])
    if (stops || piece?.stopped) return 'stop'
    this.onToken?.(id)
    return undefined
  }

  scored(position: number, logprob: number, top: readonly TokenLogprob[]): void {
    this.#prompt[position - 1] = { id: this.sequence.tokens[position]!, logprob, top }
  }

  end(finishReason: FinishReason): void {
    this.onEnd?.()
    const rest = this.#text?.end() ?? ''
    if (rest) this.#give(rest, [], [], [])
    const { promptLength } = this.sequence
    const tokens = this.sequence.tokens.slice(promptLength)
    const usage = {
      promptTokens: promptLength,
      completionTokens: tokens.length,
      totalTokens: promptLength + tokens.length,
    }
    this.#generation.finish({
      text: this.#full,
      tokens,
      logprobs: this.#logprobs,
      topLogprobs: this.#top,
      ...(this.#request.promptLogprobs && { promptLogprobs: this.#prompt }),
      finishReason,
      usage,
    })
  }

  fail(error: unknown): void {
    this.onEnd?.()
    this.#generation.fail(error)
  }

  #give(
    text: string,
    tokens: readonly number[],
    logprobs: readonly number[],
    topLogprobs: readonly (readonly TokenLogprob[])[],
  ): void {
    this.#full += text
    this.#generation.push({ text, tokens, logprobs, topLogprobs })
  }
}

/** Tokens -> text that is certain: whole characters, and no beginning of a stop string. */
class TextStream {
  readonly #detokenizer: Detokenizer
  readonly #stops: StopMatcher
  #stopped = false

  constructor(tokenizer: Tokenizer, stops: readonly string[]) {
    this.#detokenizer = new Detokenizer(tokenizer)
    this.#stops = new StopMatcher(stops)
  }

  /** mayStop: whether the text of this token is searched for stops. */
  push(id: number, mayStop: boolean): { text: string; stopped: boolean } {
    const text = this.#detokenizer.push(id)
    if (!mayStop) return { text, stopped: false }
    const result = this.#stops.push(text)
    this.#stopped = result.stopped
    return result
  }

  end(): string {
    if (this.#stopped) return ''
    const last = this.#stops.push(this.#detokenizer.end())
    return last.stopped ? last.text : last.text + this.#stops.end()
  }
}
