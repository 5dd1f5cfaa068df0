/**
 * The thread that grammar.ts gives its work to: it compiles formats and computes masks with xgrammar (WebAssembly), one
 * request after the other. When it fails in a way that no format should cause, it says so and is replaced by another.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { parentPort, workerData } from 'node:worker_threads'
import type { CompiledGrammar, GrammarCompiler, GrammarMatcher } from '@mlc-ai/web-xgrammar'
import { InputError } from './errors.ts'
import { characterClass, type GrammarLimits, normalGrammar } from './grammar_ebnf.ts'
import { regexGrammar } from './grammar_regex.ts'
import { schemaGrammar } from './grammar_schema.ts'
import { byteLevel } from './tokenizer_file.ts'

/** What the thread begins with. */
export interface WorkerData {
  /** The bytes of all tokens, one after the other; token i ends at ends[i]. Special tokens have none. */
  readonly bytes: Uint8Array
  readonly ends: Int32Array
  readonly stopTokens: readonly number[]
  readonly limits: GrammarLimits
  /** Most bytes of memory of xgrammar. */
  readonly memory: number
}

/** A matcher's beginning, with the tokens it has had if it comes from another thread; its next token; its end. */
export type Request =
  | { readonly id: number; readonly type: string; readonly text: string; readonly tokens: readonly number[] }
  | { readonly id: number; readonly token: number }
  | { readonly id: number; readonly dispose: true }

/** The answer to a beginning or a token: what may come next, or why nothing can. `fatal`: no more answers will come. */
export interface Reply {
  readonly ready?: true
  readonly mask?: Int32Array<ArrayBuffer>
  readonly ended?: boolean
  readonly error?: { readonly code: string; readonly message: string }
  readonly fatal?: string
}

interface Compiled {
  readonly grammar: CompiledGrammar
  matchers: number
}

/** Compiled formats that are kept without a matcher. */
const mostKept = 64

const port = parentPort!
const { bytes, ends, stopTokens, limits, memory } = workerData as WorkerData
const answer = (reply: Reply) => port.postMessage(reply, reply.mask ? [reply.mask.buffer] : [])

/** What the library said first at the request at hand: it has no other way to tell why it gave up. */
let complaint = ''

/** The library, whose memory is bounded. Its file is a script that says it is a module, so that it cannot be imported. */
function load(): typeof import('@mlc-ai/web-xgrammar') {
  const file = fileURLToPath(import.meta.resolve('@mlc-ai/web-xgrammar'))
  const hear = (...words: unknown[]) => {
    complaint ||= words.join(' ')
  }
  const instantiate = async (binary: BufferSource, imports: WebAssembly.Imports) => {
    const result = await WebAssembly.instantiate(binary, imports)
    const grown = Object.values(result.instance.exports).find(value => value instanceof WebAssembly.Memory)!
    const grow = grown.grow.bind(grown)
    grown.grow = pages => {
      if (grown.buffer.byteLength + pages * 65536 <= memory) return grow(pages)
      hear(`more than ${memory} bytes of memory are needed`)
      throw new RangeError(complaint)
    }
    return result
  }
  const globals = {
    exports: {},
    module: {},
    require: createRequire(file),
    __filename: file,
    console: { log: hear, warn: hear, error: hear },
    WebAssembly: Object.create(WebAssembly, { instantiate: { value: instantiate } }),
  }
  new Function(...Object.keys(globals), readFileSync(file, 'utf8'))(...Object.values(globals))
  return globals.exports as typeof import('@mlc-ai/web-xgrammar')
}

async function compilerFor(): Promise<GrammarCompiler> {
  const tokens = Array.from(ends, (end, id) => {
    let token = ''
    for (let i = id === 0 ? 0 : ends[id - 1]!; i < end; i++) token += byteLevel[bytes[i]!]
    return token
  })
  const info = await library.TokenizerInfo.createTokenizerInfo(tokens, 'byte_level', false, tokens.length, [...stopTokens])
  return library.GrammarCompiler.createGrammarCompiler(info, false) // compiled formats are kept here
}

const library = load()
const compiler = await compilerFor()
const compiled = new Map<string, Compiled>() // the longest unused first
const matchers = new Map<number, { readonly matcher: GrammarMatcher; readonly format: Compiled }>()

/** A format as a grammar. */
function grammarOf(type: string, text: string): string {
  if (type === 'grammar') return normalGrammar(text, limits)
  const inner = { ...limits, depth: 2 * limits.depth } // what is written here takes some more parentheses
  if (type === 'regex') return normalGrammar(`root ::= ${regexGrammar(text, characterClass, limits)}`, inner)
  if (type === 'json') return normalGrammar(schemaGrammar(true, limits), inner)
  let schema: unknown
  try {
    schema = JSON.parse(text)
  } catch (cause) {
    throw new InputError('ERR_FORMAT_SCHEMA', `the schema is not JSON: ${(cause as Error).message}`, { cause })
  }
  return normalGrammar(schemaGrammar(schema, limits), inner)
}

async function compile(type: string, text: string): Promise<Compiled> {
  const key = `${type} ${text}`
  const known = compiled.get(key)
  const format = known ?? { grammar: await compileGrammar(grammarOf(type, text)), matchers: 0 }
  compiled.delete(key)
  compiled.set(key, format)
  for (const [old, { grammar, matchers }] of compiled) {
    if (compiled.size <= mostKept) break
    if (matchers > 0 || old === key) continue
    compiled.delete(old)
    grammar.dispose()
  }
  return format
}

async function compileGrammar(text: string): Promise<CompiledGrammar> {
  const grammar = await library.Grammar.fromEBNF(text)
  const result = await compiler.compileGrammar(grammar)
  grammar.dispose()
  return result
}

/** What the matcher allows next. */
async function next(matcher: GrammarMatcher): Promise<void> {
  const mask = (await matcher.getNextTokenBitmask()) as Int32Array<ArrayBuffer>
  const padding = ends.length % 32
  if (padding > 0) mask[mask.length - 1]! &= 2 ** padding - 1 // the library allows ids that there are not
  const text = mask.slice()
  for (const id of stopTokens) text[id >> 5]! &= ~(1 << (id & 31))
  answer({ mask, ended: text.every(word => word === 0) })
}

async function serve(request: Request): Promise<void> {
  complaint = ''
  if ('type' in request) {
    const format = await compile(request.type, request.text)
    const matcher = await library.GrammarMatcher.createGrammarMatcher(format.grammar)
    format.matchers++
    matchers.set(request.id, { matcher, format })
    if (request.tokens.every(token => matcher.acceptToken(token))) return next(matcher)
    throw new Error('it refuses the tokens that it had allowed')
  }
  const known = matchers.get(request.id)
  if (!known) return // its beginning was refused
  if ('token' in request) {
    if (known.matcher.acceptToken(request.token)) return next(known.matcher)
    throw new Error(`it refuses token ${request.token}, which it had allowed`)
  }
  matchers.delete(request.id)
  known.format.matchers--
  known.matcher.dispose()
}

let last = Promise.resolve()
port.on('message', (request: Request) => {
  last = last.then(() =>
    serve(request).catch((error: Error) => {
      if (error instanceof InputError) answer({ error: { code: error.code, message: error.message } })
      else answer({ fatal: complaint || error.message })
    }),
  )
})
answer({ ready: true })
