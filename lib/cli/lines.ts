/** The lines that somebody types, or that come through a pipe. */
import { createInterface, type Interface } from 'node:readline'

const prompt = '> '

/**
 * Keeps what is pasted or piped ahead. While nobody waits for a line, a terminal is in its ordinary mode, so that Ctrl-C is
 * a signal then and what is typed ahead waits for its turn.
 */
export class Lines {
  readonly #readline: Interface
  readonly #output: NodeJS.WriteStream = process.stdout.isTTY ? process.stdout : process.stderr
  readonly #terminal = process.stdin.isTTY === true
  readonly #ahead: string[] = []
  #closed = false
  #wake: (() => void) | undefined

  /** onInterrupt: Ctrl-C while a line is typed, which is no signal then. */
  constructor(onInterrupt: () => void) {
    const { stdin: input } = process
    const terminal = this.#terminal
    this.#readline = createInterface({ input, terminal, prompt, ...(terminal ? { output: this.#output } : {}) })
    this.#readline.on('line', line => {
      this.#ahead.push(line)
      this.#wake?.()
    })
    this.#readline.on('close', () => {
      this.#closed = true
      this.#wake?.()
    })
    this.#readline.on('SIGINT', onInterrupt)
    this.#listen(false)
  }

  /** The next line; undefined after the last one, or after close(). */
  async next(): Promise<string | undefined> {
    if (this.#ahead.length === 0 && !this.#closed) {
      this.#listen(true)
      await new Promise<void>(resolve => {
        this.#wake = resolve
      })
      if (this.#closed && this.#terminal) this.#output.write('\n')
      this.#listen(false)
    } else if (this.#ahead.length > 0 && this.#terminal) this.#output.write(`${prompt}${this.#ahead[0]}\n`)
    return this.#ahead.shift()
  }

  /** Forgets what came ahead. */
  close(): void {
    this.#ahead.length = 0
    this.#readline.close()
  }

  #listen(on: boolean): void {
    if (!this.#terminal || this.#closed) return
    process.stdin.setRawMode(on)
    if (on) this.#readline.prompt(true)
    else this.#readline.pause()
  }
}
