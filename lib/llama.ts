/** The model as users see it. */
import { setMaxListeners } from 'node:events'
import { join } from 'node:path'
import type { Device } from '../binding.d.ts'
import { Answer } from './answer.ts'
import { ChatTemplate, type Message } from './chat.ts'
import { type LlamaConfig, readConfig } from './config.ts'
import { Engine, type EngineLimits, type EngineStats } from './engine.ts'
import { ClosedError, InputError, ModelError } from './errors.ts'
import { Generation } from './generation.ts'
import { Grammars } from './grammar.ts'
import { type DeviceName, devices, open } from './native.ts'
import {
  type GenerateOptions,
  type LoadOptions,
  type LogitsOptions,
  limitsFor,
  loadOptions,
  logitsOptions,
  request,
} from './options.ts'
import { packageRoot } from './package.ts'
import { FormatMask, sequenceOf } from './request.ts'
import { show } from './sampling.ts'
import type { Sequence } from './sequence.ts'
import { Tokenizer } from './tokenizer.ts'
import { loadModel, type Model, randomModel } from './weights.ts'

/**
 * A Llama 3 model on a device. Any number of generations may run at once; they share every step.
 *
 *     await using llama = await Llama.load('path/to/Meta-Llama-3-8B-Instruct')
 *     for await (const { text } of llama.chat([{ role: 'user', content: 'Hi!' }])) process.stdout.write(text)
 */
export class Llama {
  /** What the model's files say. */
  readonly config: LlamaConfig
  /** Absent when the model's folder has none; token prompts work without. */
  readonly tokenizer?: Tokenizer
  /** Where it runs and how: 'cpu (avx512, 2 threads)'. */
  readonly device: string
  /** Longest sequence in tokens: the model's, or less if LoadOptions.contextLength says so. */
  readonly contextLength: number
  readonly #device: Device
  readonly #engine: Engine
  readonly #chat: ChatTemplate | undefined
  readonly #grammars: Grammars | undefined
  /** Requests that may run and wait. */
  readonly #most: number
  /** That the key/value cache holds; the last token of an answer needs no place. */
  readonly #cacheTokens: number
  /** Requests whose format is being compiled: they have a place in the queue. */
  #compiling = 0
  #closed = false

  private constructor(device: Device, model: Model, config: LlamaConfig, text: Text, limits: EngineLimits) {
    this.config = config
    if (text.tokenizer) this.tokenizer = text.tokenizer
    this.device = device.description
    this.contextLength = limits.context
    this.#device = device
    this.#engine = new Engine(device, model, config, limits)
    this.#chat = text.chat
    this.#most = limits.maxSequences + limits.maxQueue
    this.#cacheTokens = limits.pages * limits.pageSize
    this.#grammars = text.tokenizer && new Grammars(text.tokenizer, config.vocab, config.stopTokens)
  }

  /**
   * Loads a folder in the Hugging Face layout (config.json, *.safetensors, tokenizer.json ...), or 'demo': the small
   * model that comes with cria.
   * @throws ModelError: a file is missing, damaged, or not a Llama; DeviceError: the device is not to be had; InputError: an
   *   option is wrong; the reason of an aborted options.signal
   */
  static async load(model: string, options: LoadOptions = {}): Promise<Llama> {
    if (typeof model !== 'string' || model === '' || model.includes('\0')) {
      throw new InputError('ERR_OPTION_TYPE', `model is ${show(model)}, expected the path of a folder, or 'demo'`)
    }
    loadOptions(options)
    options.signal?.throwIfAborted()
    const folder = model === 'demo' ? join(packageRoot, 'lib', 'demo') : model
    const config = await readConfig(folder)
    const tokenizer = await Tokenizer.load(folder)
    if (tokenizer) checkTokenizer(tokenizer, config, folder)
    const chat = tokenizer && (await ChatTemplate.load(folder, tokenizer))
    return Llama.#open(config, { tokenizer, chat }, options, (device, reserve) =>
      loadModel(device, folder, config, { ...options, reserve }),
    )
  }

  /** A model of this shape with random weights made in memory, to measure a shape without its files. Token prompts only. */
  static async random(config: LlamaConfig, options: LoadOptions = {}): Promise<Llama> {
    checkConfig(config)
    loadOptions(options)
    return Llama.#open(config, {}, options, async device => randomModel(device, config))
  }

  static async #open(
    config: LlamaConfig,
    text: Text,
    options: LoadOptions,
    weights: (device: Device, reserve: number) => Promise<Model>,
  ): Promise<Llama> {
    const name = (options.device ?? 'auto') as 'auto' | DeviceName
    const device = open(name, { threads: options.threads, activations: options.activations, fuse: options.fuse })
    try {
      const memory = devices().find(report => report.device === device.name)?.memory
      const gpu = device.freeMemory !== Number.POSITIVE_INFINITY
      const limits = (free?: number) => limitsFor(config, options, { memory, gpu, free: gpu ? free : undefined })
      const { pages, pageSize } = limits(0)
      const cache = pages * pageSize * config.layers * config.kvHeads * config.headDim * 2 * 2
      const model = await weights(device, cache)
      const llama = new Llama(device, model, config, text, limits(device.freeMemory))
      llama.#engine.warmUp()
      return llama
    } catch (error) {
      device[Symbol.dispose]()
      throw error
    }
  }

  /**
   * Continues a prompt. Text gets the token that starts a sequence in front, and what looks like a special token in it is
   * ordinary text; token ids are taken as given.
   * @throws InputError: a prompt that is empty, longer than the context or with ids outside the vocabulary; a wrong option.
   *   Nothing is started then. ClosedError, DeviceError. Later failures reject the generation.
   */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Generation {
    this.#check()
    return this.#start(this.#tokens(prompt), options).generation
  }

  /**
   * Several answers to one prompt, which is computed once. With a seed, the answer i draws with seed + i; the
   * log-probabilities of the prompt come with the first one.
   * @throws as generate; InputError ERR_OPTION_RANGE: count is not a whole number from 1 to 128, or more than may run and wait
   */
  generateMany(prompt: string | readonly number[], count: number, options: GenerateOptions = {}): Generation[] {
    this.#check()
    return this.#startMany(this.#tokens(prompt), count, options)
  }

  /**
   * Answers a conversation in the model's chat format. What messages say can never become a special token.
   * @throws as generate; InputError ERR_PROMPT_MESSAGES: not messages; ERR_CHAT_*: messages that the template refuses
   */
  chat(messages: readonly Message[], options: GenerateOptions = {}): Generation {
    this.#check()
    if (!this.#chat) throw noTokenizer('chat')
    return this.#start(this.#chat.render(messages), options).generation
  }

  /** Several answers to a conversation, as generateMany(). */
  chatMany(messages: readonly Message[], count: number, options: GenerateOptions = {}): Generation[] {
    this.#check()
    if (!this.#chat) throw noTokenizer('chat')
    return this.#startMany(this.#chat.render(messages), count, options)
  }

  /**
   * Logits for evaluation, teacher-forced: row i, of [tokens, vocab], is what the model expects after tokens[0 .. i].
   * @throws as generate
   */
  async logits(tokens: readonly number[], options: LogitsOptions = {}): Promise<Float32Array> {
    this.#check()
    logitsOptions(options)
    this.#checkTokens(tokens, this.contextLength)
    expectMany(options.signal)
    return this.#engine.evaluate([...tokens], options.signal) // it waits, and the caller's array may change meanwhile
  }

  /** What the engine does now and has done since load; after close(), what it did. */
  stats(): EngineStats {
    return this.#engine.stats
  }

  /** Rejects what is running with ClosedError and frees all memory. May be called again. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#engine.close()
    this.#device[Symbol.dispose]()
    await this.#grammars?.close()
  }

  /** close(), for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #check(): void {
    if (this.#closed) throw new ClosedError('ERR_CLOSED', 'the model was closed; load it again')
  }

  #tokens(prompt: string | readonly number[]): readonly number[] {
    return typeof prompt === 'string' ? this.#encode(prompt) : prompt
  }

  #encode(prompt: string): number[] {
    if (!this.tokenizer) throw noTokenizer('a text prompt')
    if (prompt === '') throw new InputError('ERR_PROMPT_EMPTY', 'the prompt is empty, expected text')
    const tokens = this.tokenizer.encode(prompt)
    const bos = this.config.bos ?? this.tokenizer.bos
    return bos === undefined ? tokens : [bos, ...tokens]
  }

  #checkTokens(tokens: readonly number[], most: number): void {
    if (!Array.isArray(tokens)) {
      const typed = ArrayBuffer.isView(tokens) ? '; Array.from makes one of a typed array' : ''
      throw new InputError('ERR_PROMPT_TYPE', `the prompt is ${show(tokens)}, expected text or an array of token ids${typed}`)
    }
    if (tokens.length === 0) throw new InputError('ERR_PROMPT_EMPTY', 'the prompt is empty, expected at least one token')
    if (tokens.length > most) {
      const limit = most < this.contextLength ? `${most} (one less than the context, for an answer)` : `${most} (the context)`
      throw new InputError('ERR_PROMPT_TOO_LONG', `the prompt has ${tokens.length} tokens, expected at most ${limit}`)
    }
    const { vocab } = this.config
    const at = tokens.findIndex(id => !(Number.isInteger(id) && id >= 0 && id < vocab))
    if (at >= 0) {
      const found = `token ${at} of the prompt is ${show(tokens[at])}`
      throw new InputError('ERR_PROMPT_TOKEN', `${found}, expected a whole number from 0 to ${vocab - 1}`)
    }
  }

  #startMany(prompt: readonly number[], count: number, options: GenerateOptions): Generation[] {
    if (!(Number.isInteger(count) && count >= 1 && count <= mostAnswers)) {
      const expected = `a whole number from 1 to ${mostAnswers}`
      throw new InputError('ERR_OPTION_RANGE', `the count of answers is ${show(count)}, expected ${expected}`)
    }
    if (count > this.#most) {
      const way = `ask for at most ${this.#most} at once, or load with a larger maxQueue`
      throw new InputError('ERR_OPTION_RANGE', `the count of answers is ${count}, more than may run and wait; ${way}`)
    }
    const { seed } = options
    const started: { generation: Generation; sequence: Sequence }[] = []
    try {
      for (let i = 0; i < count; i++) {
        const own = seed === undefined || i === 0 ? options : { ...options, seed: BigInt.asIntN(64, BigInt(seed) + BigInt(i)) }
        const { promptLogprobs: _, ...others } = own
        started.push(this.#start(prompt, i === 0 ? own : others, started[0]?.sequence))
      }
    } catch (error) {
      for (const { generation } of started) generation.abort()
      throw error
    }
    return started.map(({ generation }) => generation)
  }

  #start(prompt: readonly number[], options: GenerateOptions, leader?: Sequence): { generation: Generation; sequence: Sequence } {
    this.#checkTokens(prompt, this.contextLength - 1)
    const wanted = request(options, this.config, this.contextLength - prompt.length, this.#cacheTokens - prompt.length + 1)
    const { signal } = wanted
    if (wanted.stop.length > 0 && !this.tokenizer) throw noTokenizer('stop strings')
    if (wanted.format !== undefined && !this.tokenizer) throw noTokenizer('a format')
    const mask = wanted.format === undefined ? undefined : new FormatMask()
    const sequence = sequenceOf(prompt, wanted, mask, leader)
    let submitted = false
    let ended = false
    const abort = () => {
      if (submitted) this.#engine.abort(sequence)
      else if (!ended) answer.end('abort')
    }
    const generation = new Generation(abort)
    const answer = new Answer(sequence, wanted, generation, this.tokenizer)
    if (signal?.aborted) {
      ended = true
      generation.fail(signal.reason)
      return { generation, sequence }
    }
    const onAbort = () => {
      generation.fail(signal!.reason)
      abort()
    }
    expectMany(signal)
    signal?.addEventListener('abort', onAbort, { once: true })
    answer.onEnd = () => {
      ended = true
      sequence.ended = true // also where the engine has never had it: those that it leads go on without it
      this.#engine.wake()
      signal?.removeEventListener('abort', onAbort)
      mask?.dispose()
    }
    const submit = () => {
      if (ended) return
      submitted = true
      this.#engine.submit(answer)
    }
    try {
      this.#engine.refuse(sequence, this.#compiling)
    } catch (error) {
      answer.onEnd()
      throw error
    }
    if (mask) {
      answer.onToken = id =>
        mask.accept(
          id,
          () => this.#engine.wake(),
          error => this.#engine.fail(sequence, error),
        )
      this.#compiling++
      const compiled = () => this.#compiling--
      const opened = mask.open(this.#grammars!, wanted.format!, signal)
      opened.then(compiled, compiled)
      void opened.then(submit).catch(error => ended || answer.fail(error))
      return { generation, sequence }
    }
    submit()
    return { generation, sequence }
  }
}

/** Of one prompt. */
const mostAnswers = 128

interface Text {
  readonly tokenizer?: Tokenizer | undefined
  readonly chat?: ChatTemplate | undefined
}

/** Any number of generations may have one signal: Node need not warn of a leak. */
function expectMany(signal: AbortSignal | undefined): void {
  if (signal instanceof EventTarget) setMaxListeners(0, signal)
}

/** @throws InputError ERR_ARGUMENT: a config that no file could have given */
function checkConfig(config: LlamaConfig): void {
  const names = ['layers', 'heads', 'kvHeads', 'headDim', 'dim', 'hidden', 'vocab', 'context'] as const
  const refuse = (found: string, expected: string) => new InputError('ERR_ARGUMENT', `config ${found}, expected ${expected}`)
  if (typeof config !== 'object' || config === null)
    throw refuse(`is ${show(config)}`, 'a LlamaConfig such as those in builtinConfigs')
  for (const name of names) {
    if (!(Number.isInteger(config[name]) && config[name] > 0 && config[name] < 2 ** 31))
      throw refuse(`has ${name} ${show(config[name])}`, 'a whole number from 1 on')
  }
  if (config.heads % config.kvHeads !== 0) throw refuse(`has kvHeads ${config.kvHeads}`, `a divisor of heads (${config.heads})`)
  if (config.headDim % 2 !== 0) throw refuse(`has headDim ${config.headDim}`, 'an even number')
}

/** A token that the embedding lacks would be found only when a text has it. */
function checkTokenizer(tokenizer: Tokenizer, config: LlamaConfig, folder: string): void {
  if (tokenizer.size <= config.vocab) return
  const last = tokenizer.size - 1
  const found = `tokenizer.json has token ${last} (${JSON.stringify(tokenizer.decode([last], { special: true }))})`
  const way = 'the two do not belong together, or tokens were added and the model was not resized'
  throw new ModelError('ERR_TOKENIZER_SIZE', `${folder}: ${found}, but vocab_size in config.json is ${config.vocab}; ${way}`)
}

function noTokenizer(what: string): InputError {
  return new InputError('ERR_PROMPT_TOKENIZER', `${what} needs a tokenizer, and the model's folder has no tokenizer.json`)
}
