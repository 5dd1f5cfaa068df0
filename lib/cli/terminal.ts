/** What people see besides the answer: notes and progress on stderr, colours where they can be shown. */
import { styleText } from 'node:util'

type Style = Parameters<typeof styleText>[0]

/** Styled when the stream is a terminal and NO_COLOR is not set. */
export function paint(stream: NodeJS.WriteStream, style: Style, text: string): string {
  return stream.isTTY && !process.env.NO_COLOR ? styleText(style, text, { validateStream: false }) : text
}

/** A line on stderr for who watches. */
export function note(text: string): void {
  process.stderr.write(`${paint(process.stderr, 'dim', text)}\n`)
}

/** A line on stderr for something that needs attention. */
export function warn(text: string): void {
  process.stderr.write(`${paint(process.stderr, 'yellow', text)}\n`)
}

const delay = 2000

/** How far loading is, on stderr: a bar on a terminal, elsewhere one line and only when it takes long. */
export class Progress {
  readonly #label: string
  readonly #started = performance.now()
  #shown = -1

  constructor(label: string) {
    this.#label = label
  }

  update(bytes: number, total: number): void {
    const percent = Math.floor((100 * bytes) / total)
    if (percent === this.#shown) return
    if (process.stderr.isTTY) this.#bar(percent, total)
    else if (this.#shown >= 0 || performance.now() - this.#started < delay) return
    else note(`${this.#label}: ${percent}% of ${size(total)} so far`)
    this.#shown = percent
  }

  /** Removes the bar. */
  end(): void {
    if (process.stderr.isTTY && this.#shown >= 0) process.stderr.write('\r\x1b[K')
  }

  #bar(percent: number, total: number): void {
    const width = 24
    const full = Math.round((width * percent) / 100)
    const bar = '█'.repeat(full) + paint(process.stderr, 'dim', '░'.repeat(width - full))
    const room = Math.max(8, (process.stderr.columns ?? 80) - width - 30)
    const label = this.#label.length > room ? `${this.#label.slice(0, room - 3)}...` : this.#label
    process.stderr.write(`\r\x1b[K${label} ${bar} ${percent}% of ${size(total)}`)
  }
}

/** Breaks text into lines between words, as it comes. */
export class Wrap {
  readonly #width: number
  #column = 0
  #gap = ''
  #word = ''

  constructor(width: number) {
    this.#width = width
  }

  /** What can be printed now: the last word is kept until it is complete. */
  push(text: string): string {
    let out = ''
    for (const character of text) {
      if (character !== ' ' && character !== '\n') {
        this.#word += character
        continue
      }
      out += this.#flush()
      if (character === ' ') this.#gap += ' '
      else {
        out += '\n'
        this.#column = 0
        this.#gap = ''
      }
    }
    return out
  }

  end(): string {
    return this.#flush()
  }

  #flush(): string {
    if (this.#word === '') return ''
    const fits = this.#column === 0 || this.#column + this.#gap.length + this.#word.length <= this.#width
    const out = fits ? this.#gap + this.#word : `\n${this.#word}`
    this.#column = fits ? this.#column + out.length : this.#word.length
    this.#gap = ''
    this.#word = ''
    return out
  }
}

/** Bytes for people, in powers of ten. */
export function size(bytes: number): string {
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`
}

/** Milliseconds for people. */
export function duration(milliseconds: number): string {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`
}
