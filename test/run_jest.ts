/** Runs test files in a process of their own, whose addon or sources may have a bug. */
import { spawn } from 'node:child_process'
import { packageRoot } from '../lib/package.ts'

export interface Ran {
  /** null when a signal ended it. */
  readonly code: number | null
  readonly printed: string
}

/** args: of jest. env: what differs. timeout: milliseconds after which it is killed; a bug may be a loop without end. */
export function runJest(args: readonly string[], env: NodeJS.ProcessEnv, timeout?: number): Promise<Ran> {
  const jest = ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning', 'node_modules/jest/bin/jest.js']
  const child = spawn(process.execPath, [...jest, ...args, '-i'], {
    cwd: packageRoot,
    env: { ...process.env, ...env },
    timeout,
    killSignal: 'SIGKILL',
  })
  let printed = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', text => {
      printed += text
    })
  }
  return new Promise(resolve => child.on('close', code => resolve({ code, printed })))
}
