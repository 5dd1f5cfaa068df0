/** Conversations to tokens, by the model's chat template; nothing a message says can become a special token. */

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja'
import { InputError, ModelError } from './errors.ts'
import { readJson } from './json.ts'
import { type Tokenizer, tokenText } from './tokenizer.ts'

/** One turn of a conversation. */
export interface Message {
  /** Who speaks: system, user, assistant, tool, ipython or what else the template knows; only a-z and _. */
  role: string
  content: string
}

export interface RenderOptions {
  /** Ends with the beginning of the assistant's answer, which is what generation continues; default true. */
  addGenerationPrompt?: boolean
  /** The day that templates which tell the date write (local time); default now. */
  date?: Date
}

/** The most a conversation may hold, in UTF-16 units: ten times what fits in the longest context of a Llama 3. */
const maxCharacters = 2 ** 22
const maxMessages = 2 ** 14

/** Roles that a template may build its own tokens from, as `<|user|>`; it is their author's wish, not the message's. */
const ordinaryRoles: readonly string[] = ['system', 'user', 'assistant', 'tool', 'ipython', 'developer', 'function']

/** How a model wants a conversation written: its own Jinja template, or Llama 3's format where it has none. */
export class ChatTemplate {
  /** The Jinja text; undefined for the built-in format of Llama 3. */
  readonly source: string | undefined
  readonly #tokenizer: Tokenizer
  readonly #file: string
  readonly #names: { readonly bos_token: string; readonly eos_token: string }
  readonly #guard: Guard
  #template: Program | undefined // parsed on first use: a model whose template we cannot read still completes text

  private constructor(tokenizer: Tokenizer, source: string | undefined, file: string, config: unknown) {
    this.source = source
    this.#tokenizer = tokenizer
    this.#file = file
    this.#names = { bos_token: tokenText(config, 'bos_token') ?? '', eos_token: tokenText(config, 'eos_token') ?? '' }
    this.#guard = new Guard([...tokenizer.specialTokens.keys()])
  }

  /**
   * The template of a model's folder: chat_template.jinja, otherwise `chat_template` of tokenizer_config.json, otherwise
   * the format of Llama 3.
   * @throws ModelError ERR_TOKENIZER_UNREADABLE, ERR_TOKENIZER_JSON: a file cannot be used; ERR_TOKENIZER_FIELD, as `parse`.
   */
  static async load(folder: string, tokenizer: Tokenizer): Promise<ChatTemplate> {
    const file = join(folder, 'tokenizer_config.json')
    const config = await readJson(file, { prefix: 'ERR_TOKENIZER', limit: 2 ** 24 })
    const sibling = join(folder, 'chat_template.jinja')
    try {
      return new ChatTemplate(tokenizer, await readFile(sibling, 'utf8'), sibling, config)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return ChatTemplate.parse(config, file, tokenizer)
      throw new ModelError('ERR_TOKENIZER_UNREADABLE', `${sibling}: cannot be read (${(cause as Error).message}).`, { cause })
    }
  }

  /**
   * From the parsed tokenizer_config.json (undefined when there is none); `file` is its name for messages.
   * @throws ModelError ERR_TOKENIZER_FIELD: chat_template is neither text nor a list with a template named "default".
   */
  static parse(config: unknown, file: string, tokenizer: Tokenizer): ChatTemplate {
    const value = (config as { chat_template?: unknown } | undefined)?.chat_template ?? undefined
    const named = Array.isArray(value) ? value.find(entry => entry?.name === 'default')?.template : value
    if (value !== undefined && typeof named !== 'string') {
      const expected = 'a string, or a list of { name, template } with one named "default"'
      throw new ModelError('ERR_TOKENIZER_FIELD', `${file}: chat_template must be ${expected}`)
    }
    return new ChatTemplate(tokenizer, named, file, config)
  }

  /**
   * The tokens of a conversation: one begin-of-text token in front, whatever the template does, and special tokens only
   * where the template writes them.
   * @throws InputError ERR_PROMPT_MESSAGES: not a list of messages, or a role or content that cannot be written safely;
   * ERR_PROMPT_TOO_LONG; ERR_CHAT_TEMPLATE: the template refuses the conversation, with its message.
   * @throws ModelError ERR_TOKENIZER_CHAT_TEMPLATE: the template is not one we can read, or the model has none and its
   * tokenizer lacks the tokens of Llama 3's format.
   */
  render(messages: readonly Message[], { addGenerationPrompt = true, date = new Date() }: RenderOptions = {}): number[] {
    checkMessages(messages, [...this.#tokenizer.specialTokens.keys()])
    const rendered =
      this.source === undefined ? this.#llama3(messages, addGenerationPrompt) : this.#jinja(messages, addGenerationPrompt, date)
    const { bos } = this.#tokenizer
    return bos === undefined ? rendered : [bos, ...rendered.filter(id => id !== bos)]
  }

  #llama3(messages: readonly Message[], addGenerationPrompt: boolean): number[] {
    const [start, end, turn] = ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'].map(token => this.#special(token))
    const header = (role: string) => [start!, ...this.#tokenizer.encode(role), end!]
    const turns = messages.map(({ role, content }) => [header(role), this.#tokenizer.encode(`\n\n${content.trim()}`), [turn!]])
    if (addGenerationPrompt) turns.push([header('assistant'), this.#tokenizer.encode('\n\n')])
    return turns.flat(2)
  }

  #special(token: string): number {
    const id = this.#tokenizer.specialTokens.get(token)
    if (id !== undefined) return id
    const message = `${this.#file}: the model has no chat template, and no token ${token} for the format of Llama 3`
    throw new ModelError('ERR_TOKENIZER_CHAT_TEMPLATE', message)
  }

  #jinja(messages: readonly Message[], addGenerationPrompt: boolean, date: Date): number[] {
    this.#template ??= this.#parseTemplate()
    const mark = chooseMark([this.source!, ...messages.map(message => message.content)])
    let text: string
    try {
      text = run(this.#template, {
        ...this.#names,
        messages: messages.map(({ role, content }) => ({ role, content: this.#guard.mark(content, mark) })),
        add_generation_prompt: addGenerationPrompt,
        strftime_now: (format: string) => strftime(date, format),
        date_string: strftime(date, '%d %b %Y'),
      })
    } catch (cause) {
      throw new InputError('ERR_CHAT_TEMPLATE', `the chat template refuses the messages: ${(cause as Error).message}`, { cause })
    }
    // First cut at the special tokens, then drop the marks: the text between is tokenized as if there had been none.
    const parts = this.#tokenizer.split(text)
    return parts.flatMap(part => (typeof part === 'number' ? part : this.#tokenizer.encode(part.replaceAll(mark, ''))))
  }

  #parseTemplate(): Program {
    try {
      return parse(tokenize(this.source!, { lstrip_blocks: true, trim_blocks: true }))
    } catch (cause) {
      const message = `${this.#file}: the chat template cannot be read: ${(cause as Error).message}`
      throw new ModelError('ERR_TOKENIZER_CHAT_TEMPLATE', message, { cause })
    }
  }
}

/** @throws InputError ERR_PROMPT_MESSAGES, ERR_PROMPT_TOO_LONG */
function checkMessages(messages: readonly Message[], specials: readonly string[]): void {
  const refuse = (message: string) => new InputError('ERR_PROMPT_MESSAGES', message)
  if (!Array.isArray(messages)) throw refuse(`messages must be an array, found ${typeof messages}`)
  let characters = 0
  for (const [i, message] of (messages as readonly (Partial<Message> | null | undefined)[]).entries()) {
    const { role, content } = message ?? {}
    if (typeof role !== 'string' || !/^[a-z_]{1,64}$/.test(role)) {
      throw refuse(`messages[${i}].role must be 1 to 64 of a-z and _, found ${JSON.stringify(role)?.slice(0, 80)}`)
    }
    if (typeof content !== 'string') throw refuse(`messages[${i}].content must be a string, found ${typeof content}`)
    const token = ordinaryRoles.includes(role) ? undefined : specials.find(special => overlap(role, special.toLowerCase()))
    if (token !== undefined) throw refuse(`messages[${i}].role is ${role}, which could become part of the token ${token}`)
    const single = specials.find(special => special.length === 1 && content.includes(special))
    if (single !== undefined) throw refuse(`messages[${i}].content has ${single}, a special token that cannot be written as text`)
    characters += content.length
  }
  if (characters > maxCharacters || messages.length > maxMessages) {
    const limits = `at most ${maxCharacters} characters in ${maxMessages} messages`
    throw new InputError('ERR_PROMPT_TOO_LONG', `${characters} characters in ${messages.length} messages, expected ${limits}`)
  }
}

/** Whether text with the role in it could hold the token, the token taking at least one of the role's characters. */
function overlap(role: string, token: string): boolean {
  if (token.includes(role) || role.includes(token)) return true
  return Array.from(role).some((_, at) => token.startsWith(role.slice(at)) || token.endsWith(role.slice(0, at + 1)))
}

/** A character that Unicode keeps for such internal use (noncharacters), and that none of the texts has. */
function chooseMark(texts: readonly string[]): string {
  for (let code = 0xfdd0; code <= 0xfdef; code++) {
    const mark = String.fromCharCode(code)
    if (!texts.some(text => text.includes(mark))) return mark
  }
  throw new InputError('ERR_PROMPT_MESSAGES', 'the messages use all noncharacters U+FDD0 to U+FDEF; one must be left')
}

/**
 * Marks the places of a content where a special token could begin or end, so that the template's output holds none that
 * takes a character of it: between the first two and the last two characters of any, whatever their case, and where the
 * content, or what trimming leaves of it, ends like a beginning or begins like an end. Elsewhere the template sees the
 * content as it is, so its tests and filters mean what they should.
 */
class Guard {
  readonly #specials: readonly string[]
  readonly #inner: RegExp | undefined
  readonly #head: RegExp | undefined

  constructor(specials: readonly string[]) {
    const ends = specials.map(special => Array.from(special, escaped)).filter(characters => characters.length > 1)
    if (ends.length === 0) {
      this.#specials = []
      return
    }
    const inner = ends.flatMap(token => [`${token[0]}(?=${token[1]}|\\s*$)`, `${token.at(-2)}(?=${token.at(-1)})`])
    this.#inner = new RegExp([...new Set(inner)].join('|'), 'giu')
    this.#head = new RegExp(`^\\s*(?=${[...new Set(ends.map(token => token.at(-1)))].join('|')})`, 'iu')
    this.#specials = specials.map(special => special.toLowerCase())
  }

  mark(content: string, mark: string): string {
    if (!this.#inner || !this.#head) return content
    const core = content.trim().toLowerCase()
    // The template itself may write what stands around it, as in '<|' + content + '|>'.
    const inside = core !== '' && this.#specials.some(special => special.includes(core))
    return content.replace(this.#inner, `$&${mark}`).replace(inside ? /^\s*/ : this.#head, `$&${mark}`)
  }
}

const escaped = (character: string) => character.replace(/[\\^$.*+?()[\]{}|/]/, '\\$&')

type Program = ReturnType<typeof parse>

/** As the library's own Template.render, which would not let us replace strftime_now. */
function run(program: Program, variables: Readonly<Record<string, unknown>>): string {
  const constants = { true: true, false: false, none: null, True: true, False: false, None: null }
  const raise_exception = (message: string) => {
    throw new Error(message)
  }
  const environment = new Environment()
  for (const [name, value] of Object.entries({ ...constants, raise_exception, range, ...variables })) environment.set(name, value)
  return String(new Interpreter(environment).run(program).value)
}

/** Python's range. */
function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop]
  if (step === 0) throw new Error('range() step must not be zero')
  return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, i) => from + i * step)
}

/** Python's strftime as far as templates use it, in English whatever the machine's language. */
function strftime(date: Date, format: string): string {
  const english = (options: Intl.DateTimeFormatOptions) => new Intl.DateTimeFormat('en-US', options).format(date)
  const two = (value: number) => String(value).padStart(2, '0')
  const fields: Readonly<Record<string, () => string>> = {
    '%Y': () => String(date.getFullYear()),
    '%y': () => two(date.getFullYear() % 100),
    '%m': () => two(date.getMonth() + 1),
    '%d': () => two(date.getDate()),
    '%H': () => two(date.getHours()),
    '%M': () => two(date.getMinutes()),
    '%S': () => two(date.getSeconds()),
    '%b': () => english({ month: 'short' }),
    '%B': () => english({ month: 'long' }),
    '%a': () => english({ weekday: 'short' }),
    '%A': () => english({ weekday: 'long' }),
    '%%': () => '%',
  }
  return format.replace(/%./g, field => fields[field]?.() ?? field)
}
