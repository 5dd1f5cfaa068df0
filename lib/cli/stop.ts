/** Reasons to end early: Ctrl-C, and a stdout that nobody reads any more (`cria ... | head`). */

/** Exit code of a program that Ctrl-C ended: 128 + SIGINT. */
const interrupted = 130
const interruption = new Error('interrupted')

export class Stop {
  readonly #controller = new AbortController()
  #handler: (() => void) | undefined

  constructor() {
    process.on('SIGINT', () => this.interrupt())
    process.stdout.on('error', error => this.#controller.abort(error))
    process.stderr.on('error', () => {})
  }

  /** Aborted when the program should come to its end. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Ctrl-C. The second one, when the first has not been enough, ends the program on the spot. */
  interrupt(): void {
    if (this.#handler) this.#handler()
    else if (this.signal.aborted) process.exit(interrupted)
    else this.#controller.abort(interruption)
  }

  /** From now on Ctrl-C only calls this; undefined: it ends the program again. */
  onInterrupt(handler: (() => void) | undefined): void {
    this.#handler = handler
  }

  /** Runs `work`, and `end` when the program should end meanwhile or should have ended before. */
  async during<T>(end: () => void, work: () => Promise<T>): Promise<T> {
    this.signal.addEventListener('abort', end, { once: true })
    if (this.signal.aborted) end()
    try {
      return await work()
    } finally {
      this.signal.removeEventListener('abort', end)
    }
  }

  /** Everything has been written to stdout, or the signal says why not. */
  async written(): Promise<void> {
    await new Promise<void>(resolve => void process.stdout.write('', () => resolve()))
    await new Promise(setImmediate) // an error is told after the callbacks of its writes
  }

  /** Nobody reads stdout any more, which is no failure. */
  get unread(): boolean {
    return this.signal.reason?.code === 'EPIPE'
  }

  /** For a program that was aborted; undefined when stdout failed, and signal.reason says how. */
  get exitCode(): number | undefined {
    if (this.unread) return 0
    return this.signal.reason === interruption ? interrupted : undefined
  }
}
