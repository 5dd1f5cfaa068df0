/** Runs the built program as a user does. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

export const main = fileURLToPath(new URL('../../dist/lib/cli/main.js', import.meta.url))

export interface Result {
  /** null when a signal ended it. */
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** cria while it runs. */
export class Cria {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #ended: Promise<number | null>
  readonly #watchers = new Set<() => void>()
  stdout = ''
  stderr = ''

  constructor(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
    if (!existsSync(main)) throw new Error(`${main} is not there: build first, npm run build:ts`)
    this.#child = spawn(process.execPath, [main, ...args], { env: { ...process.env, ...env } })
    const { stdin, stdout, stderr } = this.#child
    stdin.on('error', () => {}) // it may leave without reading
    stdout.setEncoding('utf8').on('data', text => {
      this.stdout += text
      this.#notify()
    })
    stderr.setEncoding('utf8').on('data', text => {
      this.stderr += text
      this.#notify()
    })
    this.#ended = new Promise((resolve, reject) => this.#child.on('error', reject).on('close', resolve))
    void this.#ended.then(() => this.#notify())
  }

  type(text: string): void {
    this.#child.stdin.write(text)
  }

  endInput(): void {
    this.#child.stdin.end()
  }

  interrupt(): void {
    this.#child.kill('SIGINT')
  }

  /** Nobody reads its stdout any more. */
  closeOutput(): void {
    this.#child.stdout.destroy()
  }

  async until(holds: () => boolean): Promise<void> {
    while (!holds()) {
      if (this.#child.exitCode !== null) throw new Error(`it ended first: ${this.stdout}\n${this.stderr}`)
      await new Promise<void>(resolve => this.#watchers.add(resolve))
    }
  }

  async end(): Promise<Result> {
    const code = await this.#ended
    return { code, stdout: this.stdout, stderr: this.stderr }
  }

  #notify(): void {
    for (const watcher of this.#watchers) watcher()
    this.#watchers.clear()
  }
}

/** Runs it to its end with this stdin. */
export async function cria(args: readonly string[], input = '', env: NodeJS.ProcessEnv = {}): Promise<Result> {
  const run = new Cria(args, env)
  run.type(input)
  run.endInput()
  return run.end()
}
