/** What users import. */
export { ChatTemplate, type Message, type RenderOptions } from './chat.ts'
export {
  builtinConfigs,
  type LlamaConfig,
  parseConfig,
  type RopeScaling,
  readConfig,
  type SamplingDefaults,
} from './config.ts'
export { Detokenizer } from './detokenizer.ts'
export { type DeviceDiagnosis, type Diagnosis, diagnose, type OpCheck } from './doctor.ts'
export type { EngineStats } from './engine.ts'
export { BusyError, ClosedError, CriaError, DeviceError, InputError, ModelError, NumericError } from './errors.ts'
export type { Completion, Generation, Piece, PromptLogprob, Usage } from './generation.ts'
export type { Format } from './grammar.ts'
export { formatInspection, type Inspection, inspect } from './inspect.ts'
export { Llama } from './llama.ts'
export type { GenerateOptions, LoadOptions, LogitsOptions } from './options.ts'
export type { TokenLogprob } from './results.ts'
export type { SamplingOptions } from './sampling.ts'
export type { FinishReason } from './sequence.ts'
export { Tokenizer } from './tokenizer.ts'
