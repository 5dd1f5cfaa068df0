/** JSON files of a model folder, read with suspicion: bounded, regular, UTF-8, and with a place when they are not JSON. */
import { readFile, stat } from 'node:fs/promises'
import { errorFor } from './errors.ts'

/** Which family an error belongs to (its code is the prefix and _JSON or _UNREADABLE), and the largest file taken. */
export interface JsonOptions {
  readonly prefix: string
  /** Bytes; default 1 MiB. */
  readonly limit?: number
}

/**
 * The parsed contents of a JSON file (a byte order mark is skipped); undefined when there is no such file.
 * @throws CriaError of options.prefix: _UNREADABLE (permissions, not a regular file, over the limit, not UTF-8), _JSON
 */
export async function readJson(path: string, { prefix, limit = 2 ** 20 }: JsonOptions): Promise<unknown> {
  const unreadable = (why: string, cause?: unknown) => errorFor(`${prefix}_UNREADABLE`, `${path}: ${why}.`, { cause })
  let bytes: Buffer
  try {
    const found = await stat(path)
    if (!found.isFile()) throw unreadable('not a regular file')
    if (found.size > limit) throw unreadable(`${found.size} bytes, expected at most ${limit}`)
    bytes = await readFile(path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw code?.startsWith(prefix) ? error : unreadable(`cannot be read (${code})`, error)
  }
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw unreadable('not UTF-8', cause)
  }
  return parseJson(text, path, prefix)
}

/**
 * JSON.parse, with the file, line and column in the message: V8 does not always name the place.
 * @throws CriaError prefix_JSON
 */
export function parseJson(text: string, file: string, prefix: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    const offset = jsonErrorOffset(text)
    const before = text.slice(0, offset).split('\n')
    const place = `line ${before.length}, column ${before[before.length - 1]!.length + 1}`
    const found = offset === text.length ? 'the file ends' : `found ${JSON.stringify(text.slice(offset, offset + 20))}`
    throw errorFor(`${prefix}_JSON`, `${file}: not JSON: ${found} at ${place}.`, { cause })
  }
}

const token =
  /(?:("[^"\\\n\r\t]*(?:\\(?:["\\/bfnrt]|u[\da-fA-F]{4})[^"\\\n\r\t]*)*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)|([{}[\]:,]))/y

/** Where text stops being JSON: the offset of the first token that cannot stand there, or the length of the text. */
export function jsonErrorOffset(text: string): number {
  const value = 's1{[' // kinds of token: s string, 1 number or literal, and the punctuation as itself
  const open: string[] = []
  let allowed = value
  for (let at = 0; ; at = token.lastIndex) {
    while (at < text.length && ' \t\n\r'.includes(text[at]!)) at++
    token.lastIndex = at
    const match = token.exec(text)
    if (match === null) return at
    const kind = match[1] ? 's' : match[2] ? '1' : match[3]!
    if (!allowed.includes(kind)) return at
    if (kind === 's' && !allowed.includes('1')) allowed = ':'
    else if (kind === ':') allowed = value
    else if (kind === ',') allowed = open.at(-1) === '{' ? 's' : value
    else if (kind === '{' || kind === '[') {
      open.push(kind)
      allowed = kind === '{' ? 's}' : `${value}]`
    } else {
      if (kind === '}' || kind === ']') open.pop()
      allowed = open.length === 0 ? '' : open.at(-1) === '{' ? ',}' : ',]'
    }
  }
}
