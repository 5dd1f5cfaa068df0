/** Reasons to end early: Ctrl-C, and a stdout that nobody reads any more (`cria ... | head`). */

/** Exit code of a program that Ctrl-C ended: 128 + SIGINT. */
const interrupted = 130

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
    else this.#controller.abort(new Error('interrupted'))
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

  /** What stdout failed with, except that its reader has left, which is no failure. */
  get failure(): Error | undefined {
    const { aborted, reason } = this.signal
    return aborted && reason.message !== 'interrupted' && reason.code !== 'EPIPE' ? reason : undefined
  }

  /** For a program that was aborted. */
  get exitCode(): number {
    if (this.failure) return 1
    return this.signal.reason.code === 'EPIPE' ? 0 : interrupted
  }
}
