// mma.sync m16n8k16 on random fragments.
import { checkSum, dot, floatOf, fragment, gatherBf16, type Kind, kinds, packedValues, wordOf } from './fragments.ts'
import { probes } from './probe.ts'

probes('mma', check => {
  for (const kind of Object.keys(kinds) as Kind[]) {
    check(kind, probe => {
      const { random } = probe
      const warps = 16
      const input = packedValues(kind, random, warps * 320)
      for (let i = 0; i < warps * 32; i++) for (let k = 6; k < 10; k++) input[i * 10 + k] = wordOf(kinds[kind].value(random))
      const found = kinds[kind].exact ? probe.exact(input) : probe.run(input)
      for (let warp = 0; warp < warps; warp++) {
        const registers = input.subarray(warp * 320, warp * 320 + 320)
        const a = gatherBf16(registers, 10, 0, 8, fragment.a)
        const b = gatherBf16(registers, 10, 4, 4, fragment.b)
        for (let lane = 0; lane < 32; lane++)
          for (let i = 0; i < 4; i++) {
            const { row, column } = fragment.d(lane, i)
            const c = floatOf(registers[lane * 10 + 6 + i]!)
            const exact = dot(
              c,
              16,
              k => a.get(row, k),
              k => b.get(k, column),
            )
            const d = floatOf(found[(warp * 32 + lane) * 4 + i]!)
            checkSum(d, exact, kind, 1, `warp ${warp} lane ${lane} d${i}`)
          }
      }
    })
  }
})
