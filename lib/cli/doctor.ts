/** cria doctor: what devices there are, why one is not used, and a self-test of every operation on those that are. */
import type { Command } from 'commander'
import type { GpuSoftware } from '../../binding.d.ts'
import type { DeviceDiagnosis, Diagnosis } from '../doctor.ts'
import { duration, paint, size } from './terminal.ts'

export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .description(
      'Say what this machine has, why a device is not used, and whether every operation computes right. Takes seconds.',
    )
    .option('--simt', 'test the kernels of the GPU on emulated threads too')
    .option('--json', 'print the diagnosis as JSON')
    .action(async ({ simt, json }: { simt?: boolean; json?: boolean }) => {
      const { diagnose } = await import('../doctor.ts')
      const diagnosis = await diagnose({ simt: simt === true })
      process.stdout.write(json ? `${JSON.stringify(diagnosis, null, 2)}\n` : text(diagnosis))
      if (!diagnosis.devices.some(sound) || diagnosis.devices.some(device => device.available && !sound(device)))
        process.exitCode = 1
    })
}

const sound = ({ checks }: DeviceDiagnosis): boolean => checks?.every(check => check.ok) === true

function text({ cria, node, system, cpu, memory, gpu, devices }: Diagnosis): string {
  const lines = [
    `cria ${cria}, Node ${node}, ${system}`,
    `${cpu.model}, ${cpu.cores} cores, ${size(memory)} of memory${cpu.features.length > 0 ? `, ${cpu.features.join(' ')}` : ''}`,
    software(gpu),
    '',
    ...devices.flatMap(describe),
  ]
  return `${lines.join('\n')}\n`
}

/** 'NVIDIA driver 580.159.03 for CUDA 13.0; plug-in built with CUDA 13.0 for sm_80 sm_90a' */
function software({ driver, driverCuda, pluginCuda, architectures = [] }: GpuSoftware): string {
  const installed = (driver ?? driverCuda) ? `NVIDIA driver${driver ? ` ${driver}` : ''}` : 'no NVIDIA driver'
  const able = driverCuda ? ` for CUDA ${driverCuda}` : ''
  const plugin = pluginCuda ? `built with CUDA ${pluginCuda} for ${architectures.join(' ')}` : 'not built'
  return `${installed}${able}; CUDA plug-in ${plugin}`
}

function describe(device: DeviceDiagnosis): string[] {
  const mark = (good: boolean, word: string) => paint(process.stdout, good ? 'green' : 'red', word)
  if (!device.available) return [`${device.device}  ${paint(process.stdout, 'dim', 'not used')}: ${device.reason}`]
  const free = device.free ? ` (${size(device.free)} free)` : ''
  const head = `${device.device}  ${device.reason}${device.memory ? `, ${size(device.memory)}${free}` : ''}`
  if (device.failure) return [head, `  self-test ${mark(false, 'failed')}: ${device.failure}`]
  const checks = device.checks ?? []
  const wrong = checks.filter(check => !check.ok)
  const worst = Math.max(...checks.map(check => check.error))
  const compared = 'every operation in prefill and decode, and draws, against float32 on the CPU'
  const found = `${compared}, in ${duration(device.milliseconds ?? 0)}, errors of at most ${(100 * worst).toFixed(2)}%`
  return [
    head,
    `  self-test ${wrong.length === 0 ? mark(true, 'passed') : mark(false, 'failed')}: ${found}`,
    ...wrong.map(({ step, op, error }) => `    ${step}, ${op}: ${(100 * error).toFixed(2)}%, expected at most 2%`),
  ]
}
