/**
 * The kernels as an API of their own, and the only file that loads the addon. It is built for this platform (prebuilds/)
 * or here (build/Release).
 */
import { createRequire } from 'node:module'
import type * as Binding from '../binding.d.ts'
import { errorFor } from './errors.ts'
import { packageRoot } from './package.ts'

export type * from '../binding.d.ts'

function load(): typeof Binding {
  const require = createRequire(import.meta.url)
  try {
    const addon = process.env.CRIA_ADDON
      ? require(process.env.CRIA_ADDON)
      : (require('node-gyp-build') as (root: string) => unknown)(packageRoot)
    return addon as typeof Binding
  } catch (cause) {
    throw errorFor(
      'ERR_DEVICE_ADDON',
      `the native addon of cria could not be loaded on ${process.platform}-${process.arch}, Node ${process.version}: ` +
        `${(cause as Error).message.split('\n')[0]}. Prebuilt binaries exist for Linux on x64 with glibc; elsewhere build it ` +
        `with a C++20 compiler and cmake: npx cmake-js compile, in ${packageRoot}`,
      { cause },
    )
  }
}

const addon = load()
addon.setErrorFactory(errorFor)

/** What there is on this machine, best first, and why a device cannot be used. Opens nothing. */
export const devices: typeof Binding.devices = () => addon.devices()

/** The NVIDIA driver, and the plug-in of this build of cria. */
export const gpuSoftware: typeof Binding.gpuSoftware = () => addon.gpuSoftware()

/**
 * Opens a device. 'auto' (or undefined) takes what CRIA_DEVICE says, else the first available GPU, else the CPU.
 * Throws DeviceError (ERR_DEVICE_UNKNOWN, ERR_DEVICE_UNAVAILABLE, ERR_DEVICE_UNSUPPORTED) or InputError.
 */
export function open(device: 'auto' | Binding.DeviceName = 'auto', options: Binding.OpenOptions = {}): Binding.Device {
  return addon.open(device === 'auto' ? choose() : device, options)
}

function choose(): Binding.DeviceName {
  const wanted = process.env.CRIA_DEVICE
  if (wanted && wanted !== 'auto') return wanted as Binding.DeviceName
  return (addon.devices().find(report => report.available)?.device ?? 'cpu') as Binding.DeviceName
}
