// linear.cu - y = x W^T with mma.sync: weights on the M side, tokens on the N side, whatever the number of tokens.
//
// The bits of y[t, n] depend on x[t, :], W[n, :], add[t, n] and the shape of W: K is cut into the same segments
// whatever the batch; a segment is one chain of MMAs in the order of K; segments are added in their order. With few
// tokens every segment has a block of its own and the last one to finish adds them up; with many, one block does all
// segments.
#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/grid.h"
#include "../machine/ptx/mma.h"
#include "../machine/tile/arrive.h"
#include "linear_epilogue.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kDepth = 64;        // of a step: elements of K, 128 bytes of a row
constexpr int kStages = 4;        // steps in flight
constexpr int kSplitTokens = 64;  // up to here segments are shared out
constexpr int kMostSegments = 8;

// A step in shared memory: rows of kDepth elements, their 16-byte chunks swapped so that the eight rows of an ldmatrix
// lie in eight different groups of banks.
constexpr int kChunks = kDepth / 8;
constexpr int place(int row, int chunk) { return (row * kChunks + (chunk ^ (row % kChunks))) * 8; }

struct Problem {
  const bf16 *x, *weight;
  float* partial;      // [tiles][segments][rows of a tile x tokens of a tile]
  uint32_t* counters;  // [tiles]
  int64_t rows, cols;
  int64_t period;   // of pairs of weight rows
  int64_t segment;  // elements of K, a multiple of kDepth
  int segments;
};

// The sums of a tile that a thread has: its warp has 16 weight rows and all tokens, in fragments of 8.
template <int kTokens>
struct Tile {
  float at[kTokens / 8][4];

  CRIA_DEVICE void clear() {
    CRIA_UNROLL
    for (auto& n : at)
      for (float& f : n) f = 0;
  }
  // this = first ? other : this + other
  CRIA_DEVICE void add(const Tile& other, bool first) {
    CRIA_UNROLL
    for (int n = 0; n < kTokens / 8; n++)
      for (int i = 0; i < 4; i++) at[n][i] = first ? other.at[n][i] : at[n][i] + other.at[n][i];
  }
  // f(element, weight row, token), both within the tile.
  template <class F>
  CRIA_DEVICE void each(F f) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    CRIA_UNROLL
    for (int n = 0; n < kTokens / 8; n++)
      for (int i = 0; i < 4; i++) f(at[n][i], warp * 16 + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
  }
  // f(element, the element eight rows below, token)
  template <class F>
  CRIA_DEVICE void pairs(F f) const {
    CRIA_UNROLL
    for (int n = 0; n < kTokens / 8; n++)
      for (int i = 0; i < 2; i++) f(at[n][i], at[n][i + 2], n * 8 + int(threadIdx.x) % 4 * 2 + i);
  }
};

// Elements of a step in shared memory.
template <int kWarps, int kTokens>
constexpr int kStep = (16 * kWarps + kTokens) * kDepth;

// Copies rows [first, first + kRows) x [k, k + kDepth) of a matrix, in the order of pairs; zeros where it ends.
template <int kRows, int kThreads>
CRIA_DEVICE void request(bf16* to, const bf16* from, int64_t first, int64_t rows, int64_t period, int64_t cols,
                         int64_t k, int64_t end) {
  for (int i = int(threadIdx.x); i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int64_t column = k + chunk * 8;
    const bool inside = first + row < rows && column < end;
    copy_async_16(to + place(row, chunk), inside ? from + row_of(first + row, period) * cols + column : from, inside);
  }
}

// One step: tile += weights x tokens.
template <int kTokens>
CRIA_DEVICE void multiply(Tile<kTokens>& tile, const bf16* weights, const bf16* tokens) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  CRIA_UNROLL
  for (int k = 0; k < kDepth / 16; k++) {
    uint32_t a[4];
    ldmatrix(a, weights + place(warp * 16 + lane % 16, 2 * k + lane / 16));
    CRIA_UNROLL
    for (int n = 0; n < kTokens / 8; n += 2) {
      uint32_t b[4];
      ldmatrix(b, tokens + place(n * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
      mma_16x8x16(tile.at[n], a, first);
      mma_16x8x16(tile.at[n + 1], a, second);
    }
  }
}

// Grid: (tiles of weight rows, tiles of tokens, segments or 1).
template <int kWarps, int kTokens, bool split>
__global__ void __launch_bounds__(32 * kWarps) linear_kernel(Problem p, Epilogue epilogue, Live live) {
  constexpr int kThreads = 32 * kWarps, kRows = 16 * kWarps, kElements = kStep<kWarps, kTokens>;
  CRIA_SHARED(bf16, stages);  // [kStages][weights [kRows][kDepth], tokens [kTokens][kDepth]]
  const int64_t row = int64_t{blockIdx.x} * kRows, token = int64_t{blockIdx.y} * kTokens;
  const int64_t begin = split ? int64_t{blockIdx.z} * p.segment : 0;
  const int64_t end = split && begin + p.segment < p.cols ? begin + p.segment : p.cols;
  const int steps = int((end - begin + kDepth - 1) / kDepth), per_segment = int(p.segment / kDepth);
  const auto request_weights = [&](int step) {
    if (step < steps)
      request<kRows, kThreads>(stages + step % kStages * kElements, p.weight, row, p.rows, p.period, p.cols,
                               begin + int64_t{step} * kDepth, end);
  };

  // Weights do not depend on the kernel before.
  for (int step = 0; step < kStages - 1; step++) request_weights(step);
  grid_launch_dependents();
  grid_wait();
  const int64_t tokens = live_rows(live);
  if (tokens <= token) {
    copy_async_commit();
    copy_async_wait<0>();
    return;
  }
  const auto request_tokens = [&](int step) {
    if (step < steps)
      request<kTokens, kThreads>(stages + step % kStages * kElements + kRows * kDepth, p.x, token, tokens, 0, p.cols,
                                 begin + int64_t{step} * kDepth, end);
    copy_async_commit();
  };
  for (int step = 0; step < kStages - 1; step++) request_tokens(step);

  Tile<kTokens> sum, total;
  sum.clear();
  total.clear();
  for (int step = 0; step < steps; step++) {
    copy_async_wait<kStages - 2>();
    sync_block();  // this step has landed for all, and all have done with the one before, whose place is filled now
    request_weights(step + kStages - 1);
    request_tokens(step + kStages - 1);
    const bf16* stage = stages + step % kStages * kElements;
    multiply(sum, stage, stage + kRows * kDepth);
    if (!split && (step + 1) % per_segment == 0 && step + 1 < steps) {
      total.add(sum, step < per_segment);
      sum.clear();
    }
  }

  if constexpr (split) {
    constexpr int kSize = kRows * kTokens;
    const int64_t tile = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
    float* partials = p.partial + tile * p.segments * kSize;
    sum.each([&](float& s, int r, int t) { partials[int64_t{blockIdx.z} * kSize + r * kTokens + t] = s; });
    if (!last_to_arrive(p.counters + tile, uint32_t(p.segments), reinterpret_cast<uint32_t*>(stages))) return;
    sum.each([&](float& s, int r, int t) {
      s = partials[r * kTokens + t];
      for (int64_t i = 1; i < p.segments; i++) s += partials[i * kSize + r * kTokens + t];
    });
  } else if (p.segments > 1) {
    total.add(sum, false);
    sum = total;
  }

  const auto pair = epilogue.rows_at(int(row) + int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 4);
  sum.pairs([&](float first, float second, int t) {
    const bool alive = guard(token + t < tokens);
    if (alive) epilogue.finish<true>(pair, token + t, first, second);
  });
}

// How K is cut, from the shape of the weight and the GPU alone: enough blocks for two on each multiprocessor.
struct Cut {
  int64_t segment;
  int segments;
};
Cut cut(const Weight& w, const Chip& chip) {
  const int64_t tiles = (w.rows + 63) / 64, steps = (w.cols + kDepth - 1) / kDepth;
  int64_t parts = 2 * chip.sms / tiles;
  parts = parts < 1 ? 1 : parts > kMostSegments ? kMostSegments : parts;
  if (parts > steps) parts = steps;
  const int64_t each = (steps + parts - 1) / parts;
  return {each * kDepth, int((steps + each - 1) / each)};
}

template <int kWarps, int kTokens, bool split>
void start(const Problem& p, const Linear& op, const Gpu& gpu) {
  constexpr int64_t kRows = 16 * kWarps;
  const dim3 grid(unsigned((p.rows + kRows - 1) / kRows), unsigned((op.x.dims[0] + kTokens - 1) / kTokens),
                  split ? unsigned(p.segments) : 1);
  const Shape shape{grid, dim3(32 * kWarps), kStages * kStep<kWarps, kTokens> * sizeof(bf16), 1, gpu.dependent()};
  launch(linear_kernel<kWarps, kTokens, split>, Linear::name, shape, gpu.stream, p, Epilogue(op), live_of(op.x));
}

}  // namespace

void supports(const Linear& op) {
  multiple_of_8(Linear::name, "in", op.weight.cols);
  if ((op.weight.rows + 63) / 64 > kCounters)
    cria::fail("ERR_DEVICE_UNSUPPORTED", Linear::name, ": out is ", op.weight.rows, ", expected at most ",
               kCounters * 64, " on a GPU");
}

namespace {

// A linear that would end with rope, as one without; what it gives lies at the start of the workspace.
bool ropes_apart(const Linear& op) { return op.then == Linear::Then::rope && op.x.dims[0] > kRopeTokens; }
Linear without_rope(const Linear& op, std::byte* qkv) {
  Linear plain = op;
  plain.then = Linear::Then::nothing;
  plain.y = op.x;
  plain.y.dtype = DType::bf16;
  plain.y.dims[1] = op.weight.rows;
  plain.y.data = qkv;
  return plain;
}

}  // namespace

size_t workspace(const Linear& op, const Chip& chip) {
  if (ropes_apart(op)) {
    const Linear plain = without_rope(op, nullptr);
    return plain.y.bytes() + workspace(plain, chip);
  }
  if (chip.arch == 90) return workspace_sm90(op, chip);
  const Cut c = cut(op.weight, chip);
  if (c.segments == 1 || op.x.dims[0] > kSplitTokens) return norm_bytes(op);
  const int64_t tokens = op.x.dims[0] <= 16 ? 16 : 64;
  return norm_bytes(op) + size_t((op.weight.rows + 63) / 64 * 64 * tokens * c.segments) * sizeof(float);
}

void run(const Linear& op, const Gpu& gpu) {
  if (ropes_apart(op)) {
    const Linear plain = without_rope(op, gpu.workspace);
    Gpu rest = gpu;
    rest.workspace += plain.y.bytes();
    run(plain, rest);
    RopeAppend rope = op.rope;
    rope.qkv = plain.y;
    rope.q = op.y;
    return run(rope, gpu);
  }
  if (gpu.chip->arch == 90) return run_sm90(op, gpu);
  const Linear plain = normalised(op, gpu);
  const Cut c = cut(op.weight, *gpu.chip);
  const Problem p{plain.x.as<const bf16>(),
                  op.weight.blocks[0].data,
                  reinterpret_cast<float*>(gpu.workspace + norm_bytes(op)),
                  gpu.counters,
                  op.weight.rows,
                  op.weight.cols,
                  period_of(op),
                  c.segment,
                  c.segments};
  const int64_t tokens = op.x.dims[0];
  const bool split = c.segments > 1 && tokens <= kSplitTokens;
  if (tokens <= 16) return split ? start<4, 16, true>(p, plain, gpu) : start<4, 16, false>(p, plain, gpu);
  if (tokens <= 64) return split ? start<4, 64, true>(p, plain, gpu) : start<4, 64, false>(p, plain, gpu);
  start<8, 64, false>(p, plain, gpu);
}

}  // namespace cria::CRIA_MACHINE
