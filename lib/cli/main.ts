#!/usr/bin/env node
/** The program `cria`. */
import { inspect } from 'node:util'
import { Command, CommanderError } from 'commander'
import { version } from '../package.ts'
import { addChat } from './chat.ts'
import { addDemo } from './demo.ts'
import { addDoctor } from './doctor.ts'
import { addGenerate } from './generate.ts'
import { addInspect } from './inspect.ts'
import { Stop } from './stop.ts'
import { paint } from './terminal.ts'

const help = `
A model is a folder in the Hugging Face layout (config.json, tokenizer.json, *.safetensors in bf16), or 'demo'.

Examples:
  $ cria demo                                        see it run
  $ cria chat ./Meta-Llama-3-8B-Instruct             talk to a model
  $ cria generate demo 'The old house stood'         continue a text
  $ cria inspect llama3-8b                           what a model weighs and computes
  $ cria doctor                                      what this machine has, and whether it computes right

Exit codes: 0 done, 1 an error, 2 wrong usage, 130 ended by Ctrl-C.
Environment: CRIA_DEVICE (what 'auto' means), CRIA_CPU (scalar, avx2, avx512 or avx512bf16), CRIA_DEBUG=1 (errors
with their stack), NO_COLOR.`

const stop = new Stop()
const program = new Command('cria')
  .description('Llama 3 from Node, on kernels of its own.')
  .version(version)
  .showHelpAfterError('(--help says more)')
  .configureHelp({ helpWidth: Math.min(process.stdout.columns || 100, 100) })
  .exitOverride()
  .addHelpText('after', help)

addDemo(program, stop)
addChat(program, stop)
addGenerate(program, stop)
addInspect(program)
addDoctor(program)

/** Says what went wrong, in one line, and returns the exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2 // it has said it already
  const { message, code } = error as Error & { code?: unknown }
  const line = `${message ?? error}${typeof code === 'string' ? ` (${code})` : ''}`.replace(/\s*\n\s*/g, ' ')
  const unexpected = typeof code === 'string' ? '' : ' - CRIA_DEBUG=1 says where'
  process.stderr.write(
    `${paint(process.stderr, 'red', 'cria:')} ${process.env.CRIA_DEBUG ? inspect(error) : line + unexpected}\n`,
  )
  return 1
}

try {
  await program.parseAsync()
  await stop.written()
} catch (error) {
  if (!stop.signal.aborted) process.exitCode = report(error)
}
if (stop.signal.aborted) process.exitCode = stop.exitCode ?? report(stop.signal.reason)
