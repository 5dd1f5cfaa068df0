/**
 * The errors cria throws. Each has a `code` that programs test and a message that names the thing, what was found,
 * what was expected and the way out. `instanceof` works too, except across JavaScript realms.
 */

/** What all of cria's errors are. */
export class CriaError extends Error {
  /** Stable, upper case, starts with ERR_. */
  readonly code: string
  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = new.target.name
    this.code = code
  }
}

/** A model folder, or a file in it, that cannot be used: ERR_MODEL_*, ERR_CONFIG_*, ERR_WEIGHTS_*, ERR_SAFETENSORS_*, ERR_TOKENIZER_*. */
export class ModelError extends CriaError {}

/** An argument that makes no sense: ERR_OPTION_*, ERR_PROMPT_*, ERR_CHAT_*, ERR_FORMAT_*, ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT. Nothing was started. */
export class InputError extends CriaError {}

/** A device that is not there, has no memory left, or has failed: ERR_DEVICE_*, ERR_OUT_OF_MEMORY. */
export class DeviceError extends CriaError {}

/** Use after close() or dispose(): ERR_CLOSED, ERR_DISPOSED. */
export class ClosedError extends CriaError {}

/** No token can be drawn for this generation: ERR_NOT_FINITE, the model computed NaN or infinity; ERR_NO_TOKEN. Others go on. */
export class NumericError extends CriaError {}

/** More requests than the queue takes: ERR_BUSY. The same request may be taken later. */
export class BusyError extends CriaError {}

const families: readonly [prefix: string, type: typeof CriaError][] = [
  ['ERR_MODEL', ModelError],
  ['ERR_CONFIG', ModelError],
  ['ERR_WEIGHTS', ModelError],
  ['ERR_SAFETENSORS', ModelError],
  ['ERR_TOKENIZER', ModelError],
  ['ERR_DEVICE', DeviceError],
  ['ERR_OUT_OF_MEMORY', DeviceError],
  ['ERR_CLOSED', ClosedError],
  ['ERR_DISPOSED', ClosedError],
  ['ERR_NOT_FINITE', NumericError],
  ['ERR_NO_TOKEN', NumericError],
  ['ERR_BUSY', BusyError],
]

/** The typed error for a code, as the addon's errors and the library's own are made. */
export function errorFor(code: string, message: string, options?: ErrorOptions): CriaError {
  const type = families.find(([prefix]) => code.startsWith(prefix))?.[1] ?? InputError
  return new type(code, message, options)
}
