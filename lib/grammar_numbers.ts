/** Numbers between bounds as EBNF, digit by digit. Pure; for the worker of grammar.ts. */

/** Digits before the point, and after it: JSON.parse keeps numbers of so many exactly, or to the last bit. */
const most = 15

/** A bound from 0 on: its decimal digits, without zeros in front and at the end, and whether the bound itself is left out. */
interface Bound {
  readonly whole: string
  readonly part: string
  readonly open: boolean
}

export interface Interval {
  readonly least?: number | undefined
  readonly greatest?: number | undefined
  /** Whether the bounds themselves are left out. */
  readonly above?: boolean
  readonly below?: boolean
}

const upTo = (count: number) => `[0-9]{0,${count}}`

/** Numbers without bounds. */
export const anyWhole = `"-"? ("0" | [1-9] ${upTo(most - 1)})`
export const anyNumber = `${anyWhole} ("." [0-9]{1,${most}})? ([eE] [+\\-]? [0-9]{1,2})?`

/**
 * EBNF for the numbers of an interval, whole ones or with a decimal point, without exponent; undefined when there are none.
 * `rule` keeps a rule under a key and returns its name.
 */
export function numbers(interval: Interval, whole: boolean, rule: (body: string) => string): string | undefined {
  const { least = Number.NEGATIVE_INFINITY, greatest = Number.POSITIVE_INFINITY, above = false, below = false } = interval
  if (least > greatest) return undefined
  const bound = (value: number, open: boolean): Bound | undefined => {
    if (!Number.isFinite(value)) return undefined
    const size = Math.min(Math.abs(value), 10 ** most)
    const [integer, part = ''] = String(size).split('.') as [string, string?]
    return { whole: integer === '0' ? '' : integer, part, open }
  }
  const alternatives: (string | undefined)[] = []
  if (greatest > 0 || (greatest === 0 && !below)) {
    const from = least > 0 || (least === 0 && above) ? bound(least, above) : undefined
    alternatives.push(magnitudes(from, bound(greatest, below), whole, rule))
  }
  if (least < 0) {
    const from = greatest < 0 ? bound(greatest, below) : { whole: '', part: '', open: true }
    const found = magnitudes(from, bound(least, above), whole, rule)
    alternatives.push(found && `"-" ${found}`)
  }
  return either(alternatives)
}

function either(alternatives: readonly (string | undefined)[]): string | undefined {
  const some = alternatives.filter(alternative => alternative !== undefined)
  return some.length > 1 ? `(${some.join(' | ')})` : some[0]
}

/** Numbers from 0 on between two bounds. */
function magnitudes(
  low: Bound | undefined,
  high: Bound | undefined,
  whole: boolean,
  rule: (body: string) => string,
): string | undefined {
  const named = (body: string | undefined) => (body === undefined || body.length < 16 ? body : rule(body))

  /** The rest of the whole part from place i on; `tight`: so far it is the bound's. */
  function places(i: number, length: number, tightLow: boolean, tightHigh: boolean): string | undefined {
    if (i === length) return part(0, tightLow, tightHigh)
    if (!tightLow && !tightHigh) return `[0-9]{${length - i}} ${part(0, false, false)}`.trim()
    const from = tightLow ? Number(low!.whole.padStart(length, '0')[i]) : i === 0 && length > 1 ? 1 : 0
    const to = tightHigh ? Number(high!.whole.padStart(length, '0')[i]) : 9
    return next(from, to, tightLow, tightHigh, (l, h) => places(i + 1, length, l, h))
  }

  /** The rest of the decimals from place i on, with the point before the first. */
  function part(i: number, tightLow: boolean, tightHigh: boolean): string | undefined {
    const lowRest = tightLow ? low!.part.slice(i) : ''
    const highRest = tightHigh ? high!.part.slice(i) : ''
    const mayEnd = !(tightLow && (lowRest !== '' || low!.open)) && !(tightHigh && highRest === '' && high!.open)
    const end = mayEnd ? '' : undefined
    if (whole || i === most) return end
    if (!tightLow && !tightHigh) return i === 0 ? `("." [0-9]{1,${most}})?` : upTo(most - i)
    const more = tightHigh && highRest === '' ? undefined : decimals(i, tightLow, tightHigh)
    const pointed = more && i === 0 ? `"." ${more}` : more
    if (pointed === undefined) return end
    return mayEnd ? `(${pointed})?` : pointed
  }

  function decimals(i: number, tightLow: boolean, tightHigh: boolean): string | undefined {
    const from = tightLow ? Number(low!.part[i] ?? 0) : 0
    const to = tightHigh ? Number(high!.part[i] ?? 0) : 9
    return next(from, to, tightLow, tightHigh, (l, h) => part(i + 1, l, h))
  }

  /** One digit from..to, then what may follow it: at the bounds other things than between them. */
  function next(
    from: number,
    to: number,
    tightLow: boolean,
    tightHigh: boolean,
    follow: (tightLow: boolean, tightHigh: boolean) => string | undefined,
  ): string | undefined {
    if (from > to) return undefined
    const then = (a: number, b: number, rest: string | undefined) =>
      a > b || rest === undefined ? undefined : `${a === b ? `"${a}"` : `[${a}-${b}]`} ${rest}`.trim()
    if (from === to) return then(from, to, named(follow(tightLow, tightHigh)))
    const inner = then(tightLow ? from + 1 : from, tightHigh ? to - 1 : to, follow(false, false))
    const atLow = tightLow ? then(from, from, named(follow(true, false))) : undefined
    const atHigh = tightHigh ? then(to, to, named(follow(false, true))) : undefined
    return either([atLow, inner, atHigh])
  }

  const lowLength = low ? Math.max(1, low.whole.length) : 0
  const highLength = high ? Math.max(1, high.whole.length) : most + 1
  const tight = [...new Set([lowLength, highLength])].filter(length => length >= 1 && length <= most && lowLength <= highLength)
  return either([
    ...tight.map(length => places(0, length, length === lowLength, length === highLength)),
    between(lowLength + 1, Math.min(highLength - 1, most)),
  ])

  /** All numbers whose whole part has so many digits. */
  function between(shortest: number, longest: number): string | undefined {
    if (shortest > longest) return undefined
    const more = `[1-9] [0-9]{${shortest - 1},${longest - 1}}`
    return `${shortest === 1 ? `("0" | ${more})` : more} ${part(0, false, false)}`.trim()
  }
}
