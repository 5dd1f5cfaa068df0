/**
 * The native addon: devices, their memory, and the operations of the forward pass.
 *
 * Shapes are named: [tokens, dim] in a comment here is {"tokens", "dim"} in native/ops/*.h. A call that does not fit
 * throws at once, naming the axis and both sizes (ERR_SHAPE, ERR_DTYPE, ERR_ARGUMENT); nothing was changed then.
 * After its owner was disposed, anything throws ERR_DISPOSED or ERR_CLOSED.
 */

export type DType = 'bf16' | 'f32' | 'i32' | 'u32'

declare const handle: unique symbol
/** A rectangle of device memory, row-major. The bytes live on the device; JavaScript holds only this handle. */
export interface DeviceTensor<D extends DType = DType> {
  readonly [handle]: D
  readonly dtype: D
  readonly shape: readonly number[]
  /** Frees the memory as soon as nothing enqueued needs it. Any later use throws ERR_DISPOSED. */
  [Symbol.dispose](): void
}
/** Activations. On a device opened with activations: 'f32' (the float32 test mode) these hold float32. */
export type BF16 = DeviceTensor<'bf16'>
export type F32 = DeviceTensor<'f32'>
export type I32 = DeviceTensor<'i32'>
export type U32 = DeviceTensor<'u32'>

/**
 * A weight matrix [out, in] (or a vector [dim]) in bf16 as a list of row blocks, in order: q, k, v of one projection may
 * lie in different files. The CPU reads the blocks where they are mapped; CUDA packs them once at upload.
 */
export interface Weight {
  readonly [handle]: 'weight'
  readonly shape: readonly number[]
  /** As the file says: 'BF16', or another type, which no operation takes. */
  readonly dtype: string
  /** Path of the file that the (first) rows come from; '' for random weights. */
  readonly file: string
}

/** One layer of the paged key/value cache. */
export interface KvLayer {
  /** [pages, kvHeads, pageSize, headDim] */
  readonly k: BF16
  /** [pages, kvHeads, pageSize, headDim] */
  readonly v: BF16
}

/** Everything that changes from step to step. It lives on the device, so a recorded program is never patched. */
export interface StepInputs {
  /** [tokens] token ids given by the host */
  readonly tokens: I32
  /** [tokens] row of `previous` to read the id from instead, or -1 */
  readonly source: I32
  /** [any] ids sampled by the step before: the tensor that is Sampling.sampled */
  readonly previous?: I32
  /** [tokens] position of each token in its sequence */
  readonly positions: I32
  /** [tokens] page * pageSize + offset where its k, v go; -1 = padding, writes nothing */
  readonly slots: I32
  /** [seqs + 1] first row of each sequence; rows from queryStart[seqs] on are dead */
  readonly queryStart: I32
  /** [seqs] keys visible to the last row of each sequence, this step included */
  readonly kvLength: I32
  /** [seqs, maxPages] page ids; -1 = unused */
  readonly pageTable: I32
  /** [out] rows that go through the head; from the first -1 on, rows are dead */
  readonly outputs: I32
}

/**
 * What requests ask of the logits, before temperature: in this order a mask of the tokens that are allowed, a bias of
 * single tokens, penalties of those that were seen. Every field is a device tensor the host may rewrite between steps.
 */
export interface Edits {
  /** [out] row i has the edits start[i] .. end[i] - 1, of those that there are; rows lie in any order, with gaps */
  readonly start: I32
  /** [out] */
  readonly end: I32
  /** [edits] token ids, each once in a row; one outside the vocabulary is ignored */
  readonly ids: I32
  /** [edits] is added to the logit */
  readonly bias: F32
  /** [edits] how often the token was generated; 0: seen in the prompt only; -1: never seen, bias only */
  readonly count: I32
  /** [out] 1 = off; the logit l of a token that was seen becomes l > 0 ? l / repetition : l * repetition */
  readonly repetition: F32
  /** [out] 0 = off; then l - frequency * count */
  readonly frequency: F32
  /** [out] 0 = off; then l - presence, where count > 0 */
  readonly presence: F32
  /**
   * [out] row of `previous` with an id that was generated too, and counts once more than its edit says; without one, as
   * if there were one with count 1. -1: none
   */
  readonly newest: I32
  /** [any] ids sampled by the step before, as StepInputs.previous; a row or an id that does not exist is ignored */
  readonly previous?: I32
  /** [out] row of `masks`, or -1: every token is allowed. A row that does not exist allows none */
  readonly maskRow: I32
  /** [any, ceil(vocab / 32)] bit id % 32 of word id / 32: whether the token is allowed; if not, its logit is -infinity */
  readonly masks?: I32 | U32
}

/** How each output row is sampled; every field is a device tensor the host may rewrite between steps. */
export interface Sampling {
  /** [out] 0 = greedy */
  readonly temperature: F32
  /** [out] 1 = off */
  readonly topP: F32
  /** [out] 0 = off */
  readonly minP: F32
  /** [out] 0 = off */
  readonly topK: I32
  /** [out, 2] 64 bits, low word first; the draw is argmax(logit / T + Gumbel(seed, position, id)) over the kept set */
  readonly seed: U32
  /** [out] */
  readonly position: I32
  /** [at least out] the sampled ids again, at an address that does not change: the next step's StepInputs.previous */
  readonly sampled?: I32
}
export interface Sampled {
  /** [out] */
  readonly ids: I32
  /** [out] natural logarithm of the id's probability, before temperature and truncation */
  readonly logprobs: F32
  /** [out] 0, or 1: a logit was NaN or infinite */
  readonly status: I32
}

/** Natural logarithms of softmax(logits). NaN, and ids -1, in a row with NaN or +infinity, or with nothing but -infinity. */
export interface Logprobs {
  /** [out] of the id that was asked for; NaN for one outside the vocabulary */
  readonly chosen: F32
  /** [out, 20] the most probable tokens, the lowest id first among equals; -1 where the vocabulary is smaller */
  readonly topIds: I32
  /** [out, 20] theirs; -infinity where the vocabulary is smaller */
  readonly top: F32
}

/** The operations of the forward pass. Each appends one command and returns the tensor it will write. */
export interface Recorder {
  /** table [vocab, dim] -> residual stream [tokens, dim] in float32 */
  embed(table: Weight, step: StepInputs): F32
  /** y = x / sqrt(mean(x^2) + eps) * weight; x [tokens, dim], weight [dim] -> [tokens, dim] */
  rmsNorm(x: F32, weight: Weight, eps: number): BF16
  /** y = x W^T; x [tokens, in], weight [out, in] -> [tokens, out] */
  linear(x: BF16, weight: Weight): BF16
  /** y = add + x W^T in float32: the residual stream */
  linear(x: BF16, weight: Weight, options: { add: F32 }): F32
  /** y = x W^T, left in float32 */
  linear(x: BF16, weight: Weight, options: { as: 'f32' }): F32
  /**
   * Rotates q and k by position (pairs d, d + headDim / 2) and stores k, v in their slots;
   * qkv [tokens, (heads + 2 kvHeads) headDim], invFreq [headDim / 2] -> q [tokens, heads, headDim]
   */
  ropeAppend(qkv: BF16, kv: KvLayer, step: StepInputs, invFreq: F32): BF16
  /** Causal softmax(q k^T / sqrt(headDim)) v over each sequence's pages; q [tokens, heads, headDim] -> [tokens, heads * headDim] */
  attention(q: BF16, kv: KvLayer, step: StepInputs): BF16
  /** y = silu(gate) * up; gateUp [tokens, 2 hidden], gate first -> [tokens, hidden] */
  swiglu(gateUp: BF16): BF16
  /** x [tokens, dim], rows outputs [out] -> [out, dim] */
  selectRows(x: F32, step: StepInputs): F32
  /** logits [out, vocab] -> the logits [out, vocab] after what requests ask for */
  adjust(logits: F32, edits: Edits): F32
  /** logits [out, vocab] -> ids, log-probabilities, status */
  sample(logits: F32, sampling: Sampling): Sampled
  /** Of the id given[i], or of sampled[i] where that is negative, and of the most probable; logits [out, vocab], ids [out] */
  logprobs(logits: F32, sampled: I32, given: I32): Logprobs
}

/** Work of one command with every row alive: bytes that must cross the memory bus once, floating-point operations. */
export interface Cost {
  /** 'attention'; of operations that became one: 'rmsNorm+linear+swiglu'. */
  readonly op: string
  readonly bytes: number
  readonly flops: number
}

/** A kernel as a program starts it. */
export interface Launch {
  /** Its mangled name; on the emulated GPU its address in the library, as nm shows it: '0x1f40'. */
  readonly kernel: string
  readonly grid: readonly number[]
  readonly block: readonly number[]
  /** Bytes of dynamic shared memory. */
  readonly shared: number
}

/** A recorded forward pass: memory planned, ready to be replayed. */
export interface Program<R> {
  /** What the body returned. These tensors live outside the arena, in two copies: step n can be read while n + 1 runs. */
  readonly outputs: R
  readonly cost: readonly Cost[]
  /** Bytes of device memory for activations, which all programs of a device share, and for results, which are its own. */
  readonly memory: number
  /** The kernels that it starts, on a GPU; empty on the CPU. */
  readonly launches: readonly Launch[]
  /** Enqueues the whole program; never blocks. One call across the boundary, whatever the number of layers. */
  run(): void
  [Symbol.dispose](): void
}

/** Bytes and operations a second, all threads together. */
export interface Ceilings {
  /** Reading memory once. */
  readonly read: number
  /** Bytes read plus bytes written by a copy. */
  readonly copy: number
  /**
   * Arithmetic of matrix products, with operands at hand: FMA or bf16 dot products on the CPU; bf16 mma.sync on a GPU,
   * or wgmma where that is faster. No matrix product reaches it quite: see measureLibrary().
   */
  readonly flops: number
}

/** A stream: random, write, run, copyPages and read take effect in the order of the calls. */
export interface Device {
  /** 'cpu', 'cuda:0' */
  readonly name: string
  /** One line for people: 'cpu (avx512, 2 threads)'. */
  readonly description: string
  /** What the device keeps activations in. */
  readonly activation: 'bf16' | 'f32'
  /** Zeroed memory. Throws ERR_OUT_OF_MEMORY. */
  tensor<D extends DType>(dtype: D, shape: readonly number[]): DeviceTensor<D>
  /**
   * The first from.length elements of `to`; with `at`, element at[i] is from[i], of a tensor whose elements have 4 bytes.
   * Copies both arrays before it returns. Where a place comes twice, one of its values stays, and which is not said.
   */
  write(to: DeviceTensor, from: ArrayBufferView, at?: Int32Array): void
  /**
   * The first into.length elements of `from`. Resolves with `into` when everything enqueued so far, and this copy, has
   * finished; rejects if anything enqueued has failed.
   */
  read<V extends ArrayBufferView>(from: DeviceTensor, into: V): Promise<V>
  /** Bytes of memory of its own that are free; Infinity on the CPU, where weights stay where they are mapped. */
  readonly freeMemory: number
  /**
   * Opens and validates safetensors files; on the CPU reads them ahead, with progress. Rejects with ERR_MODEL_FILE_*, ERR_SAFETENSORS_* or
   * ERR_WEIGHTS_DUPLICATE; with signal.reason when aborted.
   */
  weights(
    files: readonly string[],
    options?: { onProgress?: ((bytes: number, total: number) => void) | undefined; signal?: AbortSignal | undefined },
  ): Promise<ReadonlyMap<string, Weight>>
  /**
   * Brings a weight into the device's memory, where it otherwise goes when it is first recorded. Resolves when it is
   * there. While one is copied the next ones are read from their files: give it two or three at a time.
   */
  upload(weight: Weight): Promise<void>
  /** Rows of several weights as one: q | k | v, gate | up. */
  stack(...parts: readonly Weight[]): Weight
  /** Nearly normal random values [out, in] or [dim], for benchmarks of a shape without its weights. seed: a whole number. */
  random(shape: readonly number[], seed: number, std: number): Weight
  /** Copies whole pages of every layer, in order: from[i] -> to[i]. */
  copyPages(kv: readonly KvLayer[], from: Int32Array, to: Int32Array): void
  /**
   * Seconds on the device's clock at the moment when everything enqueued so far has finished. The difference of two is
   * the time of what was enqueued between them.
   */
  clock(): Promise<number>
  /** What this machine can do, measured now in about a second (medians of five): the denominators of benchmarks. */
  measure(): Promise<Ceilings>
  /**
   * Operations a second of the vendor's library in x W^T, x [rows, into], W [out, into], bf16 with float32 sums: what
   * benchmarks compare with. undefined where there is no such library: cuBLASLt is neither linked nor needed.
   */
  measureLibrary(rows: number, out: number, into: number): Promise<{ library: string; flops: number } | undefined>
  /** Runs `body` once, keeps what it recorded. */
  record<R>(body: (op: Recorder) => R): Program<R>
  /** Stops within one command and frees everything; reads that wait are rejected with ERR_CLOSED. */
  [Symbol.dispose](): void
}

export interface DeviceReport {
  readonly device: string
  readonly available: boolean
  /** What it is, or why it cannot be used. */
  readonly reason: string
  /** Bytes */
  readonly memory?: number
  /** Bytes that nobody uses now, where the system says it: of a GPU. */
  readonly free?: number
}

/** What runs GPUs on this machine. What is not there, or does not say, is absent. */
export interface GpuSoftware {
  /** Version of the NVIDIA driver: '580.159.03'. */
  readonly driver?: string
  /** The newest CUDA that the driver can run: '13.0'. */
  readonly driverCuda?: string
  /** The CUDA that the plug-in was built with. */
  readonly pluginCuda?: string
  /** What the plug-in has kernels for: 'sm_80', 'sm_90a'. */
  readonly architectures?: readonly string[]
}

export type DeviceName = 'cpu' | 'simt' | `cuda:${number}`
export interface OpenOptions {
  /** CPU threads; as many as the process may use when absent. */
  threads?: number | undefined
  /** 'f32': the float32 test mode, for comparison with references; bf16 otherwise. */
  activations?: 'bf16' | 'f32' | undefined
  /**
   * Neighbouring operations become one kernel where a GPU has one for both; true when absent. The bits are the same either way.
   * The CPU, whose activations stay in its cache, has none.
   */
  fuse?: boolean | undefined
}

/** What there is on this machine, best first, and why a device cannot be used. Opens nothing. */
export function devices(): readonly DeviceReport[]
/** The NVIDIA driver, and the plug-in of this build of cria. */
export function gpuSoftware(): GpuSoftware
/** ERR_DEVICE_UNKNOWN, ERR_DEVICE_UNAVAILABLE, ERR_DEVICE_UNSUPPORTED. */
export function open(device: DeviceName, options?: OpenOptions): Device
/** How native errors become JavaScript errors. lib/native.ts sets it. */
export function setErrorFactory(make: (code: string, message: string) => Error): void
