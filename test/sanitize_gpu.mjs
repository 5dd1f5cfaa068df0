// npm run test:gpu:sanitize: the kernels on a GPU under compute-sanitizer's four tools, some cases of every operation each.
// Exit codes: 0 nothing found, 1 something found or a test failed, 3 not run (no tool, no GPU, or the tool refuses this machine).
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

const root = join(import.meta.dirname, '..')
process.chdir(root)
const { values } = parseArgs({ options: { device: { type: 'string', default: 'cuda:0' } } })

/** Says why nothing was run, in one sentence. */
function refuse(sentence) {
  process.stderr.write(`test:gpu:sanitize was not run: ${sentence}\n`)
  process.exit(3)
}

const { devices } = await import('../dist/lib/native.js')
const found = devices().find(({ device }) => device === values.device)
if (values.device !== 'simt' && !found?.available) refuse(found?.reason ?? `there is no ${values.device}`)
if (spawnSync('compute-sanitizer', ['--version']).error) {
  refuse('compute-sanitizer is not on the PATH; it is part of the CUDA toolkit (Debian: nvidia-cuda-toolkit)')
}

const most = 60
const ops = readdirSync('test/ops').filter(name => name.endsWith('.test.ts'))
const cases = Math.floor(most / ops.length)
const tools = {
  memcheck: /ERROR SUMMARY: (\d+) error/,
  racecheck: /RACECHECK SUMMARY: (\d+) hazard/,
  synccheck: /ERROR SUMMARY: (\d+) error/,
  initcheck: /ERROR SUMMARY: (\d+) error/,
}
const jest = ['--experimental-vm-modules', '--disable-warning=ExperimentalWarning', 'node_modules/jest/bin/jest.js']

let failed = false
const refused = []
for (const [tool, summary] of Object.entries(tools)) {
  const started = Date.now()
  const program = [process.execPath, ...jest, '-i', 'test/ops', '-t', `^(?!.* refused: ).* on ${values.device} `]
  // The driver's own allocations and Node's memory are not the kernels' business.
  const options = ['--tool', tool, '--target-processes', 'all', '--error-exitcode', '99', '--print-limit', '20']
  const { stdout, stderr, status } = spawnSync('compute-sanitizer', [...options, ...program], {
    encoding: 'utf8',
    env: { ...process.env, CRIA_CASES: String(cases) },
    maxBuffer: 2 ** 28,
  })
  const printed = `${stdout}\n${stderr}`
  const seconds = Math.round((Date.now() - started) / 1000)
  const ran = Number(printed.match(/Tests:.*?(\d+) passed/)?.[1] ?? 0)
  const errors = printed.match(summary)?.[1]
  if (errors === undefined) {
    const said =
      printed.match(/^=========.*(?:rror|support|permission|fail|denied|nable).*$/m)?.[0] ?? printed.trim().split('\n').at(-1)
    refused.push(`compute-sanitizer --tool ${tool} did not finish on this machine: ${said}`)
    continue
  }
  const ok = Number(errors) === 0 && status === 0 && ran > 0 && ran <= most
  failed ||= !ok
  const what = `${ran} cases of ${ops.length} files in ${seconds} s`
  process.stdout.write(`${ok ? 'clean ' : 'FAILED'} ${tool.padEnd(9)} ${what}, ${errors} found, exit code ${status}\n`)
  if (!ok)
    process.stdout.write(
      `${
        printed
          .match(/^(=========|.*✕|\s*●).*$/gm)
          ?.slice(0, 80)
          .join('\n') ?? printed
      }\n`,
    )
}
for (const sentence of refused) process.stderr.write(`test:gpu:sanitize was not run: ${sentence}\n`)
process.exit(failed ? 1 : refused.length > 0 ? 3 : 0)
