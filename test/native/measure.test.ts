/** What a machine can do, and the clock of its device. */
import { describe, expect, test } from '@jest/globals'
import { open } from '../../lib/native.ts'

describe.each(['cpu', 'simt'] as const)('on %s', name => {
  test('measure gives bytes and operations a second', async () => {
    using device = open(name)
    const { read, copy, flops } = await device.measure()
    for (const rate of [read, copy, flops]) {
      expect(Number.isFinite(rate)).toBe(true)
      expect(rate).toBeGreaterThan(1e6)
    }
  })

  test('the clock shows how long what lies between took, in the order of the stream', async () => {
    using device = open(name)
    const x = device.tensor('f32', [64, 512])
    const weight = device.random([512], 1, 1)
    const program = device.record(op => Array.from({ length: 50 }, () => op.rmsNorm(x, weight, 1e-5)).at(-1))
    program.run()
    const begin = device.clock()
    const nothing = device.clock()
    for (let i = 0; i < 4; i++) program.run()
    const end = device.clock()
    const times = [await begin, await nothing, await end] as const
    expect(times[1]).toBeGreaterThanOrEqual(times[0])
    expect(times[2] - times[1]).toBeGreaterThan(1e-5)
  })

  test('there is no library to compare with, and sizes are checked', async () => {
    using device = open(name)
    expect(await device.measureLibrary(16, 32, 64)).toBeUndefined()
    expect(() => device.measureLibrary(0, 32, 64)).toThrow('measureLibrary: rows is 0')
  })

  test('a device that is closed rejects what waits, and refuses what comes', async () => {
    const device = open(name)
    const waiting = [device.measure(), device.measure(), device.clock()]
    device[Symbol.dispose]()
    const settled = await Promise.allSettled(waiting)
    expect(settled.at(-1)).toMatchObject({ status: 'rejected', reason: { code: 'ERR_CLOSED' } })
    expect(() => device.clock()).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }))
  })
})
