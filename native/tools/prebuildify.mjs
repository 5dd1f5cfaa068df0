// Stands in for node-gyp when prebuildify builds: it passes options that cmake-js would misread (--target=26.0.0 means
// a Node version to node-gyp and a CMake target to cmake-js). `rebuild` becomes `compile`: what is built is not built again.
import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'

const dropped = /^--(target|devdir|dist-url|runtime|build_v8_with_gn|release)(=|$)/
const args = process.argv
  .slice(2)
  .filter(arg => !dropped.test(arg))
  .map(arg => (arg === 'rebuild' ? 'compile' : arg))
const cmakeJs = createRequire(import.meta.url).resolve('cmake-js/bin/cmake-js')
const { status } = spawnSync(process.execPath, [cmakeJs, ...args], { stdio: 'inherit' })
process.exit(status ?? 1)
