// The threads that formats are compiled in: what they are asked and answer, how they fail, and how little they disturb.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { monitorEventLoopDelay, performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { afterEach, describe, expect, test } from '@jest/globals'
import { type Format, type GrammarOptions, Grammars, type Matcher } from '../../lib/grammar.ts'
import { packageRoot } from '../../lib/package.ts'
import type { Tokenizer } from '../../lib/tokenizer.ts'
import { allowed, allows, demo, llama3, seeded, stops } from './grammar_walks.ts'

const opened: Grammars[] = []
function grammarsOf(tokenizer: Tokenizer, options?: GrammarOptions, vocab = tokenizer.size): Grammars {
  const grammars = new Grammars(tokenizer, vocab, stops(tokenizer), options)
  opened.push(grammars)
  return grammars
}
afterEach(() => Promise.all(opened.splice(0).map(grammars => grammars.close())))

const person: Format = {
  type: 'jsonSchema',
  schema: { properties: { name: { type: 'string' }, tags: { type: 'array', items: { type: 'string' } } }, required: ['name'] },
}
const letter = (code: number) => String.fromCharCode(code)
/** Which of 20 places had an a, and what comes at the end then: xgrammar makes a state of each of the 2^20 answers. */
const places = Array.from({ length: 20 }, (_, i) => `[X${letter(97 + i)}][abc]{${i}}a[ab]{${20 - i}}${letter(65 + i)}`)
const endless: Format = { type: 'regex', pattern: places.join('|') }
const [stop] = stops(demo) as [number]
const accepted = async (matcher: Matcher, text: string) => {
  for (const id of demo.encode(text)) await matcher.accept(id)
  return matcher
}

describe('a matcher', () => {
  test('never allows special tokens, nor ids without a token, and stop tokens only at the end', async () => {
    const grammars = grammarsOf(demo, {}, demo.size + 77)
    for (const format of [person, { type: 'regex', pattern: '[\\s\\S]*' } as const]) {
      const matcher = await grammars.open(format)
      expect(matcher.mask!.length).toBe(Math.ceil((demo.size + 77) / 32))
      const mayEnd = format !== person
      for (const text of ['{"name":', ' "a"', '}']) {
        const ids = allowed(matcher).filter(id => id >= demo.size || demo.isSpecial(id))
        expect(ids).toEqual(mayEnd ? stops(demo).sort() : [])
        await accepted(matcher, text)
      }
      expect(allowed(matcher).filter(id => id >= demo.size || demo.isSpecial(id))).toEqual(stops(demo).sort())
      expect(matcher.ended).toBe(format === person)
      await matcher.accept(stop)
      expect([matcher.ended, allowed(matcher)]).toEqual([true, []])
      await expect(matcher.accept(stop)).rejects.toMatchObject({ code: 'ERR_FORMAT_TOKEN' })
    }
  })

  test('refuses what its mask does not allow, and nothing has changed', async () => {
    const matcher = await accepted(await grammarsOf(demo).open(person), '{"na')
    const before = allowed(matcher)
    const others = Array.from({ length: demo.size }, (_, id) => id).filter(id => !before.includes(id))
    for (const id of [...others, -1, 0.5, Number.NaN, 2 ** 31, 2 ** 32 + before[0]!, demo.size])
      await expect(matcher.accept(id)).rejects.toMatchObject({ name: 'InputError', code: 'ERR_FORMAT_TOKEN' })
    expect(allowed(matcher)).toEqual(before)
    await accepted(matcher, 'me":"x"}')
    expect(matcher.ended).toBe(true)
  })

  test('refuses a token before there is its mask', async () => {
    const matcher = await grammarsOf(demo).open(person)
    const [first] = demo.encode('{')
    const accepting = matcher.accept(first!)
    expect(matcher.mask).toBeUndefined()
    await expect(matcher.accept(first!)).rejects.toMatchObject({
      code: 'ERR_FORMAT_TOKEN',
      message: expect.stringMatching('await'),
    })
    await accepting
    expect(matcher.mask).toBeDefined()
  })

  test('allows the same as another one of its format, step by step', async () => {
    const grammars = grammarsOf(llama3)
    const [one, other] = [await grammars.open(person), await grammars.open(person)]
    for (const id of llama3.encode('{"name": "größer 🔑", "tags": ["a", "b"]}')) {
      expect(Buffer.from(one.mask!.buffer).equals(Buffer.from(other.mask!.buffer))).toBe(true)
      await Promise.all([one.accept(id), other.accept(id)])
    }
    expect([one.ended, other.ended]).toEqual([true, true])
  })

  test('is of no use when it was disposed of', async () => {
    const matcher = await grammarsOf(demo).open(person)
    const accepting = matcher.accept(demo.encode('{')[0]!)
    matcher.dispose()
    matcher.dispose()
    await expect(accepting).rejects.toMatchObject({ name: 'ClosedError', code: 'ERR_DISPOSED' })
    await expect(matcher.accept(1)).rejects.toMatchObject({ code: 'ERR_DISPOSED' })
  })
})

describe('limits', () => {
  const nested = (depth: number): object => (depth === 0 ? { type: 'null' } : { type: 'array', items: nested(depth - 1) })
  const over: [what: string, format: Format, options: GrammarOptions, message: RegExp][] = [
    [
      'text',
      { type: 'regex', pattern: 'a'.repeat(101) },
      { textLength: 100 },
      /pattern has 101 characters, expected at most 100/,
    ],
    ['depth of schemas', { type: 'jsonSchema', schema: nested(11) }, { depth: 10 }, /more than 10 deep at #\/items/],
    ['depth of patterns', { type: 'regex', pattern: `${'('.repeat(11)}a${')'.repeat(11)}` }, { depth: 10 }, /more than 10 deep/],
    [
      'depth of grammars',
      { type: 'grammar', grammar: `root ::= ${'('.repeat(11)}"a"${')'.repeat(11)}` },
      { depth: 10 },
      /more than 10 deep/,
    ],
    ['rules', { type: 'grammar', grammar: 'root ::= ("a" "b"? "c"){0,90}' }, { rules: 20 }, /more than 20 rules/],
    [
      'rules of schemas',
      { type: 'jsonSchema', schema: { enum: Array.from({ length: 99 }, (_, i) => `${i % 10}${i}`) } },
      { rules: 5 },
      /5 rules/,
    ],
  ]
  test.each(over)('of %s', async (_, format, options, message) => {
    await expect(grammarsOf(demo, options).open(format)).rejects.toMatchObject({
      name: 'InputError',
      code: 'ERR_FORMAT_SIZE',
      message: expect.stringMatching(message),
    })
  })

  test('what is at them passes', async () => {
    await grammarsOf(demo, { textLength: 100 }).open({ type: 'regex', pattern: 'a'.repeat(100) })
    await grammarsOf(demo, { depth: 10 }).open({ type: 'jsonSchema', schema: nested(10) })
    await grammarsOf(demo).open({ type: 'jsonSchema', schema: nested(64) })
    await grammarsOf(demo).open({ type: 'regex', pattern: `${'('.repeat(64)}a${')'.repeat(64)}` })
    await grammarsOf(demo).open({ type: 'grammar', grammar: `root ::= ${'('.repeat(64)}"a"${')'.repeat(64)}` })
  })

  /** Others in the one thread, before and after what is too much. */
  async function others(grammars: Grammars, tooMuch: Format, expected: object) {
    const [calm, busy] = [await accepted(await grammars.open(person), '{"name": "J'), await grammars.open({ type: 'json' })]
    const mask = [...calm.mask!]
    const failing = [grammars.open(tooMuch), grammars.open(tooMuch)]
    const going = busy.accept(demo.encode('[')[0]!)
    for (const opening of failing) await expect(opening).rejects.toMatchObject({ name: 'InputError', ...expected })
    await going
    expect(allows(busy.mask!, demo.encode(']')[0]!)).toBe(true)
    expect([...calm.mask!]).toEqual(mask)
    await Promise.all([accepted(calm, 'im"}'), accepted(busy, '1]')])
    expect([calm.ended, allows(busy.mask!, stop)]).toEqual([true, true])
  }

  test('of time: the format fails wherever it is asked for, others go on in another thread', async () => {
    await others(grammarsOf(demo, { time: 1500, threads: 1 }), endless, {
      code: 'ERR_FORMAT_TIME',
      message: expect.stringMatching('more than 1500 ms'),
    })
  })

  test('of memory: the format fails, others go on in another thread', async () => {
    const memory = 2 ** 24 + 2 ** 19 // that of an empty xgrammar, and half a megabyte
    const repeated: Format = { type: 'regex', pattern: Array.from({ length: 10 }, (_, i) => `[^${i}]{1,120}${i}`).join('') }
    const message = expect.stringMatching(`more than ${memory} bytes`)
    await others(grammarsOf(demo, { memory, threads: 1 }), repeated, { code: 'ERR_FORMAT_FAILED', message })
  })
})

describe('opening', () => {
  test('stops at a signal, before and while the format is compiled', async () => {
    const grammars = grammarsOf(demo, { threads: 1 })
    const reason = new Error('enough')
    await expect(grammars.open(person, AbortSignal.abort(reason))).rejects.toBe(reason)
    const controller = new AbortController()
    const opening = grammars.open(endless, controller.signal)
    await sleep(300)
    controller.abort(reason)
    await expect(opening).rejects.toBe(reason)
  })

  test('is refused after close(), and what is under way fails', async () => {
    const grammars = grammarsOf(demo, { threads: 1 })
    const matcher = await grammars.open(person)
    const closed = { name: 'ClosedError', code: 'ERR_CLOSED' }
    const failing = [expect(grammars.open(endless)).rejects.toMatchObject(closed)]
    await sleep(300)
    failing.push(expect(matcher.accept(demo.encode('{')[0]!)).rejects.toMatchObject(closed))
    await grammars.close()
    await grammars.close()
    await Promise.all(failing)
    await expect(grammars.open(person)).rejects.toMatchObject(closed)
    await expect(matcher.accept(1)).rejects.toMatchObject(closed)
  })

  test('keeps the event loop free: of seconds of compiling it is busy for milliseconds', async () => {
    const grammars = grammarsOf(llama3)
    await grammars.open({ type: 'regex', pattern: 'a' })
    const properties = Object.fromEntries(
      Array.from({ length: 20 }, (_, i) => [
        `p${i}`,
        [{ type: 'string', maxLength: 40 }, { type: 'number', minimum: -17.25 * i }, { enum: [`v${i}`, i] }][i % 3],
      ]),
    )
    const heavy: Format[] = [
      { type: 'jsonSchema', schema: { type: 'array', items: { properties } } },
      { type: 'regex', pattern: '(\\p{L}{1,30} ){1,20}[0-9a-f]{8}' },
    ]
    for (const format of heavy) {
      const delay = monitorEventLoopDelay({ resolution: 1 })
      const [before, began] = [performance.eventLoopUtilization(), performance.now()]
      delay.enable()
      const matcher = await grammars.open(format)
      const took = performance.now() - began
      const { active } = performance.eventLoopUtilization(before)
      await sleep(20) // what has blocked the loop until now is measured when it goes on
      delay.disable()
      matcher.dispose()
      expect(took).toBeGreaterThan(400)
      expect(active).toBeLessThan(took / 8)
      expect(delay.max / 1e6).toBeLessThan(took / 4) // mostly 5 to 15 ms; of a busy machine it is allowed more
    }
  })

  test('reads the tokens in slices', async () => {
    let longest = 0
    let since = performance.now()
    const timer = setInterval(() => {
      longest = Math.max(longest, performance.now() - since)
      since = performance.now()
    })
    const { bytes } = llama3
    let reading = 0
    const slow = {
      size: llama3.size,
      isSpecial: (id: number) => llama3.isSpecial(id),
      bytes: (id: number) => {
        for (const until = performance.now() + 0.01; performance.now() < until; );
        reading++
        return bytes.call(llama3, id)
      },
    }
    const grammars = new Grammars(slow, slow.size, stops(llama3))
    opened.push(grammars)
    await grammars.open({ type: 'regex', pattern: 'a' })
    clearInterval(timer)
    expect(reading).toBeGreaterThanOrEqual(128_000) // more than a second
    expect(longest).toBeLessThan(500)
  })
})

test('formats in threads of their own: one that takes long does not hold up the other', async () => {
  const grammars = grammarsOf(demo, { threads: 2 })
  const matcher = await grammars.open(person)
  const opening = expect(grammars.open(endless)).rejects.toMatchObject({ code: 'ERR_CLOSED' })
  await sleep(300)
  await accepted(matcher, '{"name": "Jim"}')
  expect(matcher.ended).toBe(true)
  await grammars.close()
  await opening
})

test('3,000 matchers leave nothing behind', async () => {
  const grammars = grammarsOf(llama3, { threads: 1 })
  const ids = llama3.encode('{"name": "J')
  const round = async (count: number) => {
    for (let i = 0; i < count; i++) {
      const matcher = await grammars.open(i % 10 > 0 ? person : { type: 'regex', pattern: `a{${i}}` })
      if (i % 10 > 0) for (const id of ids) await matcher.accept(id)
      matcher.dispose()
    }
    return process.memoryUsage().rss / 2 ** 20
  }
  const before = await round(500)
  const after = await round(2500)
  expect(after - before).toBeLessThan(30) // each holds a mask of 16 KiB at least
}, 120_000)

describe('a process', () => {
  const url = (path: string) => JSON.stringify(pathToFileURL(join(packageRoot, path)).href)
  const run = (body: string) =>
    promisify(execFile)(process.execPath, [
      '--input-type=module',
      '-e',
      `import { Grammars } from ${url('dist/lib/grammar.js')}
       import { Tokenizer } from ${url('dist/lib/tokenizer.js')}
       const tokenizer = await Tokenizer.load(${JSON.stringify(join(packageRoot, 'lib/demo'))})
       const grammars = new Grammars(tokenizer, tokenizer.size, [${stops(demo)}])
       ${body}`,
    ])

  test('waits for what it asked for, ends without close(), and prints nothing', async () => {
    const body = "const { mask } = await grammars.open({ type: 'json' }); process.stdout.write(String(mask.length))"
    expect(await run(body)).toEqual({ stdout: '128', stderr: '' })
  })

  test('ends by itself when a format is refused, and has the message', async () => {
    const body = "await grammars.open({ type: 'regex', pattern: '(' }).catch(error => process.stdout.write(error.code))"
    expect(await run(body)).toEqual({ stdout: 'ERR_FORMAT_REGEX', stderr: '' })
  })
})

test('random answers in both threads at once are the same as one after the other', async () => {
  const grammars = grammarsOf(demo)
  const formats: Format[] = [person, { type: 'json' }, { type: 'regex', pattern: '(ab?c|[x-z]{2,3})*' }]
  const walk = async (seed: number) => {
    const random = seeded(seed)
    const matcher = await grammars.open(formats[seed % formats.length]!)
    const ids: number[] = []
    for (let i = 0; i < 30 && !matcher.ended; i++) {
      const possible = allowed(matcher).filter(id => !demo.isSpecial(id))
      ids.push(possible[random(possible.length)]!)
      await matcher.accept(ids.at(-1)!)
    }
    matcher.dispose()
    return ids
  }
  const seeds = Array.from({ length: 30 }, (_, i) => i)
  const together = await Promise.all(seeds.map(walk))
  for (const seed of seeds) expect(await walk(seed)).toEqual(together[seed])
})
