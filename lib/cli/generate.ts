/** cria generate: continues a prompt. */
import { addAbortSignal } from 'node:stream'
import { text } from 'node:stream/consumers'
import type { Command } from 'commander'
import { InputError } from '../errors.ts'
import { follow } from './follow.ts'
import { load } from './load.ts'
import { generateOptions, type LoadFlags, loadOptions, type SamplingFlags, samplingOptions, whole } from './options.ts'
import type { Stop } from './stop.ts'
import { duration, note } from './terminal.ts'

interface Flags extends LoadFlags, SamplingFlags {
  readonly json?: boolean
  readonly topLogprobs?: number
  readonly quiet?: boolean
}

const help = `
The text goes to stdout as it is generated, and nothing else does; figures go to stderr.
Ctrl-C ends the generation with what there is (exit code 130); a second one leaves at once.

Examples:
  $ cria generate demo 'The old house stood' --max-tokens 40 --seed 1
  $ cria generate ./Meta-Llama-3-8B < prompt.txt > continuation.txt
  $ cria generate ./Meta-Llama-3-8B 'Q: What is a cria?' --stop Q: --temperature 0 --json
  $ cria generate ./Meta-Llama-3-8B 'A number: ' --format 'regex:[0-9]{1,9}'`

export function addGenerate(program: Command, stop: Stop): void {
  const command = program
    .command('generate')
    .description('Continue a prompt: text completion.')
    .argument('<model>', "a model's folder, or demo")
    .argument('[prompt]', 'the text to continue (default: stdin, without the newline at its end)')
  samplingOptions(command)
  loadOptions(command)
    .option('--json', 'print the completion as one JSON object at the end instead')
    .option('--top-logprobs <n>', 'with --json: the n most probable tokens at each place, up to 20', whole(0, 20))
    .option('--quiet', 'no figures on stderr')
    .addHelpText('after', help)
    .action(async (model: string, prompt: string | undefined, flags: Flags) => {
      if (flags.topLogprobs !== undefined && !flags.json) command.error('error: --top-logprobs is for --json')
      if (prompt === undefined && process.stdin.isTTY) {
        command.error("error: missing the prompt; give it after the model, or on stdin (cria generate demo 'Once upon')")
      }
      await generate(model, prompt ?? (await readPrompt(stop)), flags, stop)
    })
}

async function readPrompt(stop: Stop): Promise<string> {
  const prompt = (await text(addAbortSignal(stop.signal, process.stdin))).replace(/\r?\n$/, '')
  if (prompt !== '') return prompt
  throw new InputError('ERR_PROMPT_EMPTY', 'stdin has no prompt; give it there, or after the model')
}

async function generate(model: string, prompt: string, flags: Flags, stop: Stop): Promise<void> {
  const { llama, milliseconds } = await load(model, flags, stop)
  try {
    let last = ''
    const write = (piece: string) => {
      process.stdout.write(piece)
      last = piece
    }
    const generation = llama.generate(prompt, { ...generateOptions(flags), topLogprobs: flags.topLogprobs })
    const { completion, timing } = await follow(generation, stop, flags.json ? () => {} : write)
    if (flags.json) {
      const { firstTokenMilliseconds, tokensPerSecond } = timing
      const timings = { loadMilliseconds: milliseconds, firstTokenMilliseconds, tokensPerSecond }
      process.stdout.write(`${JSON.stringify({ ...completion, device: llama.device, timings })}\n`)
    } else if (process.stdout.isTTY && !last.endsWith('\n')) process.stdout.write('\n')
    if (!flags.quiet && !stop.unread) {
      const { finishReason, usage } = completion
      note(`${timing}; ended by ${endings[finishReason]}`)
      note(`prompt of ${usage.promptTokens} tokens, loaded in ${duration(milliseconds)}, ${llama.device}`)
    }
  } finally {
    await llama.close()
  }
}

const endings = { stop: 'a stop token or text', length: 'the token limit', abort: 'Ctrl-C' } as const
