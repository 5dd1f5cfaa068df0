/** cria inspect: a model in numbers, from its config alone. Needs no weights and not the addon. */
import { join } from 'node:path'
import type { Command } from 'commander'
import { builtinConfigs, isBuiltinConfig, type LlamaConfig, readConfig } from '../config.ts'
import { formatInspection, inspect } from '../inspect.ts'
import { packageRoot } from '../package.ts'
import { withHint } from './load.ts'
import { whole } from './options.ts'
import { warn } from './terminal.ts'

interface Flags {
  readonly tokens?: number
  readonly past?: number
  readonly json?: boolean
}

const names = ['demo', ...Object.keys(builtinConfigs)]

const help = `
Examples:
  $ cria inspect llama3-8b                          a prompt that fills the context
  $ cria inspect llama3-8b --tokens 1 --past 4095   one decoded token
  $ cria inspect ./Meta-Llama-3-8B --json`

export function addInspect(program: Command): void {
  program
    .command('inspect')
    .description('Say what a model is: its shape, weights, KV cache, and each step of its forward pass. Needs no weights.')
    .argument('<model>', `a model's folder, or one of ${names.join(', ')}`)
    .option('--tokens <n>', 'walk through the forward pass over this many (default: the context)', whole(1))
    .option('--past <n>', 'with this many in the KV cache already (default: 0)', whole(0))
    .option('--json', 'print the inspection as JSON')
    .addHelpText('after', help)
    .action(async (model: string, { json, ...options }: Flags) => {
      const inspection = inspect(await configOf(model), options)
      process.stdout.write(json ? `${JSON.stringify(inspection, null, 2)}\n` : formatInspection(inspection))
      for (const setting of inspection.config.ignored) warn(`not followed: ${setting}`)
    })
}

async function configOf(model: string): Promise<LlamaConfig> {
  if (isBuiltinConfig(model)) return builtinConfigs[model]
  try {
    return await readConfig(model === 'demo' ? join(packageRoot, 'lib', 'demo') : model)
  } catch (error) {
    throw withHint(error, model, names)
  }
}
