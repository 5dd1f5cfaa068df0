/** cria chat: a conversation. */
import type { Command } from 'commander'
import type { Message } from '../chat.ts'
import { InputError, NumericError } from '../errors.ts'
import type { Generation } from '../generation.ts'
import type { Llama } from '../llama.ts'
import type { Tokenizer } from '../tokenizer.ts'
import { follow } from './follow.ts'
import { Lines } from './lines.ts'
import { load } from './load.ts'
import { generateOptions, type LoadFlags, loadOptions, type SamplingFlags, samplingOptions } from './options.ts'
import type { Stop } from './stop.ts'
import { note, warn } from './terminal.ts'

interface Flags extends LoadFlags, SamplingFlags {
  readonly system?: string
}

const commands = `/reset  forget the conversation, but not the system message
/help   this
/exit   leave, as Ctrl-C and Ctrl-D do; while an answer comes, Ctrl-C stops the answer`

const help = `
Type a line and get an answer; the whole conversation goes along each time. Lines may be piped, too.
${commands}

Examples:
  $ cria chat ./Meta-Llama-3-8B-Instruct
  $ cria chat ./Meta-Llama-3-8B-Instruct --system 'Answer in one sentence.' --temperature 0
  $ printf 'Hi!\\nWhat did I say?\\n' | cria chat ./Meta-Llama-3-8B-Instruct`

export function addChat(program: Command, stop: Stop): void {
  const command = program
    .command('chat')
    .description('Talk to a model.')
    .argument('<model>', "a model's folder, or demo")
    .option('--system <text>', 'how the model should behave: the first message of the conversation')
  samplingOptions(command)
  loadOptions(command)
    .addHelpText('after', help)
    .action(async (model: string, flags: Flags) => {
      const { llama } = await load(model, flags, stop)
      try {
        if (stop.signal.aborted) return
        await greet(llama, model)
        await new Chat(llama, flags, stop).run()
      } finally {
        await llama.close()
      }
    })
}

async function greet(llama: Llama, model: string): Promise<void> {
  if (!llama.tokenizer) throw new InputError('ERR_PROMPT_TOKENIZER', `${model} has no tokenizer.json, which chat needs`)
  if (process.stdin.isTTY) note(`${model} on ${llama.device}, context of ${llama.contextLength} tokens; /help for help`)
  if (!(await hasTemplate(model, llama.tokenizer))) {
    warn("No chat template: probably a base model. It gets Llama 3's format and may not answer to the point.")
  }
}

async function hasTemplate(model: string, tokenizer: Tokenizer): Promise<boolean> {
  if (model === 'demo') return false
  const { ChatTemplate } = await import('../index.ts')
  return (await ChatTemplate.load(model, tokenizer)).source !== undefined
}

class Chat {
  readonly #llama: Llama
  readonly #flags: Flags
  readonly #stop: Stop
  readonly #lines: Lines
  readonly #system: readonly Message[]
  #messages: Message[]
  #answer: Generation | undefined

  constructor(llama: Llama, flags: Flags, stop: Stop) {
    this.#llama = llama
    this.#flags = flags
    this.#stop = stop
    this.#system = flags.system === undefined ? [] : [{ role: 'system', content: flags.system }]
    this.#messages = [...this.#system]
    this.#lines = new Lines(() => stop.interrupt())
  }

  /** Until /exit, the end of input, Ctrl-C at the prompt, or a device that fails. */
  async run(): Promise<void> {
    const leave = () => this.#lines.close()
    this.#stop.onInterrupt(() => (this.#answer ? this.#answer.abort() : leave()))
    try {
      await this.#stop.during(leave, async () => {
        for (let line = await this.#lines.next(); line !== undefined; line = await this.#lines.next()) {
          if (/^\/[a-z]+$/.test(line.trim())) this.#command(line.trim())
          else if (line.trim() !== '') await this.#turn(line)
        }
      })
    } finally {
      this.#stop.onInterrupt(undefined)
      leave()
    }
  }

  #command(name: string): void {
    if (name === '/exit') this.#lines.close()
    else if (name === '/reset') {
      this.#messages = [...this.#system]
      note('The conversation starts anew.')
    } else note(name === '/help' ? commands : `There is no command ${name}.\n${commands}`)
  }

  /** One message and its answer, which both enter the conversation when there is an answer. */
  async #turn(content: string): Promise<void> {
    const messages: Message[] = [...this.#messages, { role: 'user', content }]
    try {
      this.#answer = this.#llama.chat(messages, generateOptions(this.#flags))
      const { completion } = await follow(this.#answer, this.#stop, text => process.stdout.write(text))
      process.stdout.write('\n')
      if (completion.text !== '') this.#messages = [...messages, { role: 'assistant', content: completion.text }]
      if (completion.finishReason === 'abort') note('[stopped]')
      if (completion.finishReason === 'length') this.#sayLength(completion.usage.totalTokens)
    } catch (error) {
      this.#sayWrong(error)
    } finally {
      this.#answer = undefined
    }
  }

  #sayLength(tokens: number): void {
    const { contextLength } = this.#llama
    if (tokens < contextLength) note(`[stopped after --max-tokens ${this.#flags.maxTokens}]`)
    else warn(`[the context of ${contextLength} tokens is full: /reset starts a new conversation]`)
  }

  /** What concerns this message alone; the rest is thrown on. */
  #sayWrong(error: unknown): void {
    if (!(error instanceof InputError || error instanceof NumericError)) throw error
    if (error.code === 'ERR_PROMPT_TOO_LONG') {
      const way = this.#messages.length > this.#system.length ? '/reset starts a new conversation' : 'send a shorter message'
      warn(`The context of ${this.#llama.contextLength} tokens has no room for this and an answer: ${way}.`)
    } else warn(`${error.message} (${error.code})`)
  }
}
