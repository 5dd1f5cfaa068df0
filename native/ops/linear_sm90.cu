// linear_sm90.cu - y = x W^T with TMA and wgmma: weights on the M side, tokens on the N side, whatever their number.
//
// A step is 128 rows of the weight times 64 elements of K. One warp requests steps, a ring of them is in flight; two
// warpgroups multiply, 64 rows each. All steps of a weight, block of rows after block of rows, are dealt to workers
// (one for each multiprocessor) in equal runs. Where a run ends within a block, K is cut: a segment is one chain of
// MMAs, and segments are added in their order. The cuts follow from the weight and the GPU alone, so a token has the
// same bits in every kernel here:
//   few tokens: a worker does its run for all of them. The last one to finish a segment of a block adds them up.
//   many: a worker does whole tiles, and keeps the sum of earlier segments in device memory.
#include "../machine/ptx/grid.h"
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/wgmma.h"
#include "../machine/tile/arrive.h"
#include "linear_epilogue.cuh"
#include "rms_norm.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kRows = 128, kDepth = kBoxColumns;
constexpr int kConsumers = 256, kThreads = kConsumers + 32;
constexpr int kFew = 256;                         // tokens of one tile
constexpr int kNormTokens = 8;                    // up to here every worker normalises x itself
constexpr size_t kNormBytes = size_t{128} << 10;  // if it fits, with two blocks a multiprocessor in mind
constexpr int kSide = 8;  // many: blocks of rows that are done side by side, so that L2 has them
static_assert(kConsumers == kNormThreads);

constexpr int stages_of(int tokens) { return tokens == 128 ? 6 : 4; }
constexpr size_t step_bytes(int tokens) { return size_t(kRows + tokens) * kDepth * sizeof(bf16); }

// How the steps of a weight are dealt. Worker w begins at step w steps / workers.
struct Deal {
  int blocks, depth;  // blocks of rows, steps of one block
  int workers;

  Deal(const Weight& w, const Chip& chip)
      : blocks(int((w.rows + kRows - 1) / kRows)), depth(int((w.cols + kDepth - 1) / kDepth)), workers(chip.sms) {
    if (workers > steps()) workers = steps();
  }
  constexpr int steps() const { return blocks * depth; }
  constexpr int begin(int worker) const { return int(int64_t{worker} * steps() / workers); }
  constexpr int worker_of(int step) const { return int((int64_t{step + 1} * workers - 1) / steps()); }
};

struct Problem {
  Deal deal;
  float* partial;      // few: [2 workers][kTokens / 2][kConsumers], many: [blocks of the grid][kTokens / 2][kConsumers]
  uint32_t* counters;  // [blocks]
  int64_t period;      // of pairs of weight rows
  // The norm of x [tokens, cols], where it is done here.
  const float* x;
  const bf16* norm;
  int64_t tokens, cols;
  float eps;
};

// What a worker does next: its i-th step.
struct Place {
  int block, k, token;
};
template <int kTokens, bool many>
struct Work {
  const Deal& deal;
  int count;  // of steps
  int first;  // few: step; many: tile
  int tiles;  // of tokens

  CRIA_DEVICE Work(const Deal& d, int64_t live) : deal(d), first(int(blockIdx.x)), tiles(1) {
    if (many) {
      tiles = int((live + kTokens - 1) / kTokens);
      const int all = deal.blocks * tiles;
      count = (all - first + int(gridDim.x) - 1) / int(gridDim.x) * deal.depth;
    } else {
      first = deal.begin(int(blockIdx.x));
      count = deal.begin(int(blockIdx.x) + 1) - first;
    }
  }
  CRIA_DEVICE Place at(int i) const {
    if (!many) return {(first + i) / deal.depth, (first + i) % deal.depth, 0};
    // kSide blocks of rows for all tokens, then the next ones.
    const int tile = first + i / deal.depth * int(gridDim.x);
    const int before = tile / (kSide * tiles) * kSide, rest = tile - before * tiles;
    const int side = deal.blocks - before < kSide ? deal.blocks - before : kSide;
    return {before + rest % side, i % deal.depth, rest / side * kTokens};
  }
};

template <int kTokens>
struct Accumulator {
  float at[kTokens / 2];

  CRIA_DEVICE void clear() {
    CRIA_UNROLL
    for (float& f : at) f = 0;
  }
  CRIA_DEVICE void store(float* to) const {
    CRIA_UNROLL
    for (int i = 0; i < kTokens / 2; i++) to[i * kConsumers + int(threadIdx.x)] = at[i];
  }
  CRIA_DEVICE void load(const float* from) {
    CRIA_UNROLL
    for (int i = 0; i < kTokens / 2; i++) at[i] = from[i * kConsumers + int(threadIdx.x)];
  }
  // Segments in their order: before, which lies there, comes first; after comes last.
  CRIA_DEVICE void add_to(const float* before) {
    CRIA_UNROLL
    for (int i = 0; i < kTokens / 2; i++) at[i] = before[i * kConsumers + int(threadIdx.x)] + at[i];
  }
  CRIA_DEVICE void add(const float* after) {
    CRIA_UNROLL
    for (int i = 0; i < kTokens / 2; i++) at[i] += after[i * kConsumers + int(threadIdx.x)];
  }
};

struct Consumers {
  CRIA_DEVICE void operator()() const { sync_warps(1, kConsumers); }
};

// Shared memory: a ring of [weights [kRows, kDepth], tokens [kTokens, kDepth]], or of weights alone and then all of x
// as [depth][kTokens, kDepth]; full and empty barriers; sums of squares [kTokens][warps]; a flag.
template <int kTokens, bool many>
__global__ void __launch_bounds__(kThreads, kTokens <= 64 ? 2 : 1)
    linear_sm90_kernel(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap tokens, Problem p,
                       Epilogue epilogue, Live live) {
#if !defined(CRIA_ON_GPU) || defined(CRIA_WGMMA_ON_GPU)
  constexpr int kStages = stages_of(kTokens);
  CRIA_SHARED(bf16, ring);
  const bool normed_here = kTokens == kNormTokens && p.norm;
  const int stage_elements = normed_here ? kRows * kDepth : (kRows + kTokens) * kDepth;
  const auto stage_bytes = uint32_t(stage_elements) * uint32_t(sizeof(bf16));
  bf16* const all_tokens = ring + kStages * stage_elements;
  auto* const full = reinterpret_cast<uint64_t*>(all_tokens + (normed_here ? p.deal.depth * kTokens * kDepth : 0));
  uint64_t* const empty = full + kStages;
  auto* const sums = reinterpret_cast<float*>(empty + kStages);
  auto* const flag = reinterpret_cast<uint32_t*>(sums + (normed_here ? kTokens * kNormWarps : 0));
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;

  if (threadIdx.x == 0)
    for (int s = 0; s < kStages; s++) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, kConsumers / 32);
    }
  sync_block();
  grid_launch_dependents();

  if (warp == kConsumers / 32) {  // the producer
    const uint64_t weight_policy = cache_policy(many ? Evict::last : Evict::first);
    const uint64_t token_policy = cache_policy(Evict::last);
    const auto request_weights = [&](const Place& at, int s) {
      mbarrier_arrive(full + s, stage_bytes);
      bf16* const to = ring + s * stage_elements;
      const int row = at.block * kRows, k = at.k * kDepth;
      if (p.period == 0) {
        tensor_copy<2>(to, &weights, {k, row}, full + s, weight_policy);
      } else {
        const int in = int(row % p.period);
        tensor_copy<5>(to, &weights, {k, 0, 0, in / 16, int(row / p.period)}, full + s, weight_policy);
      }
    };
    const auto request_tokens = [&](const Place& at, int s) {
      if (normed_here) return;
      bf16* const to = ring + s * stage_elements + kRows * kDepth;
      tensor_copy<2>(to, &tokens, {at.k * kDepth, at.token}, full + s, token_policy);
    };
    if (many) grid_wait();
    const Work<kTokens, many> work(p.deal, many ? live_rows(live) : 0);
    const int ahead = many ? 0 : work.count < kStages ? work.count : kStages;
    // Weights do not depend on the kernel before.
    if (lane == 0)
      for (int i = 0; i < ahead; i++) request_weights(work.at(i), i);
    if (!many) grid_wait();
    if (lane > 0) return;
    for (int i = 0; i < ahead; i++) request_tokens(work.at(i), i);
    for (int i = ahead; i < work.count; i++) {
      const int s = i % kStages;
      if (i >= kStages) mbarrier_wait(empty + s, uint32_t(i / kStages - 1) % 2);
      request_weights(work.at(i), s);
      request_tokens(work.at(i), s);
    }
    return;
  }

  grid_wait();
  const int64_t alive = live_rows(live);
  if (normed_here) {
    // x after its norm, as wgmma wants it; zeros beyond the last row and column.
    for (int t = 0; t < p.tokens; t++) {
      const float sum = sum_of_squares(p.x + t * p.cols, p.cols);
      if (lane == 0) sums[t * kNormWarps + warp] = sum;
    }
    Consumers{}();
    const int columns = p.deal.depth * kDepth;
    for (int t = 0; t < kTokens; t++) {
      const float scale = t < p.tokens ? norm_scale(sums + t * kNormWarps, p.cols, p.eps) : 0.0f;
      for (int d = int(threadIdx.x) * 4; d < columns; d += kConsumers * 4) {
        Pack<bf16, 4> y{};
        const bool inside = guard(t < p.tokens && d < p.cols);
        if (inside) y = normed(p.x + t * p.cols, p.norm, d, scale);
        store(all_tokens + d / kDepth * kTokens * kDepth + swizzled(t, d % kDepth), y);
      }
    }
    publish_shared();
    Consumers{}();
  }

  const Work<kTokens, many> work(p.deal, alive);
  Accumulator<kTokens> sum;
  for (int i = 0; i < work.count;) {
    const Place at = work.at(i);
    // Segments of this block that are done here, from `at.k` on.
    const int end = many || at.k + work.count - i > p.deal.depth ? p.deal.depth : at.k + work.count - i;
    float* const kept = p.partial + int64_t{blockIdx.x} * (kTokens / 2) * kConsumers;
    int cut = many ? p.deal.begin(p.deal.worker_of(at.block * p.deal.depth) + 1) - at.block * p.deal.depth : end;
    bool first = true;
    sum.clear();
    for (int k = at.k; k < end; k++, i++) {
      const int s = i % kStages;
      mbarrier_wait(full + s, uint32_t(i / kStages) % 2);
      const bf16* const a = ring + s * stage_elements + warp / 4 * 64 * kDepth;
      const bf16* const b =
          normed_here ? all_tokens + k * kTokens * kDepth : ring + s * stage_elements + kRows * kDepth;
      wgmma_fence();
      CRIA_UNROLL
      for (int step = 0; step < kDepth; step += 16)
        wgmma_64xnx16<kTokens>(sum.at, matrix_descriptor(a + step), matrix_descriptor(b + step));
      wgmma_commit();
      // The step before has been multiplied: its place is free.
      wgmma_wait<1>();
      if (k > at.k && lane == 0) mbarrier_arrive(empty + (i - 1) % kStages);
      if (many && k + 1 == cut && k + 1 < end) {
        wgmma_wait<0>();
        if (!first) sum.add_to(kept);
        sum.store(kept);
        sum.clear();
        first = false;
        cut = p.deal.begin(p.deal.worker_of(at.block * p.deal.depth + k + 1) + 1) - at.block * p.deal.depth;
      }
    }
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(empty + (i - 1) % kStages);

    if (many) {
      if (!first) sum.add_to(kept);
    } else if (end - at.k < p.deal.depth) {
      constexpr int64_t kSize = kTokens / 2 * kConsumers;
      const int from = p.deal.worker_of(at.block * p.deal.depth);
      const int last = p.deal.worker_of((at.block + 1) * p.deal.depth - 1);
      // A worker has two segments at most that are not whole blocks: the first of its run and the last.
      const auto place = [&](int worker) {
        return p.partial + (2 * worker + (p.deal.begin(worker) / p.deal.depth < at.block)) * kSize;
      };
      sum.store(place(int(blockIdx.x)));
      if (!last_to_arrive(p.counters + at.block, uint32_t(last - from + 1), flag, Consumers{})) continue;
      sum.load(place(from));
      for (int worker = from + 1; worker <= last; worker++) sum.add(place(worker));
    }

    const int row = at.block * kRows + warp * 16 + lane / 4;
    CRIA_UNROLL
    for (int j = 0; j < kTokens / 8; j++)
      for (int e = 0; e < 2; e++) {
        const int token = at.token + j * 8 + lane % 4 * 2 + e;
        const bool exists = guard(token < alive);
        if (exists) epilogue.finish(row, token, sum.at[j * 4 + e], sum.at[j * 4 + e + 2]);
      }
  }
#endif
}

TensorMap map_of_weights(const Linear& op, int64_t period) {
  const Weight& w = op.weight;
  const bf16* const data = w.blocks[0].data;
  if (period == 0) return tensor_map<2>(data, {w.cols, w.rows}, {1, w.cols}, {kDepth, kRows});
  // Eight rows, both halves of a period, eights, periods: row_of() as axes.
  const int eights = period / 16 < kRows / 16 ? int(period / 16) : kRows / 16;
  return tensor_map<5>(data, {w.cols, 8, 2, period / 16, w.rows / period},
                       {1, w.cols, period / 2 * w.cols, 8 * w.cols, period * w.cols},
                       {kDepth, 8, 2, eights, period < w.rows ? kRows / 16 / eights : 1});
}

bool norms_here(const Linear& op) {
  const size_t columns = size_t((op.weight.cols + kDepth - 1) / kDepth * kDepth);
  return op.norm.rank && op.x.dims[0] <= kNormTokens && columns * kNormTokens * sizeof(bf16) <= kNormBytes;
}

template <int kTokens, bool many>
void start(const Linear& op, const Linear& plain, float* partial, const Gpu& gpu) {
  const Deal deal(op.weight, *gpu.chip);
  const int64_t tokens = op.x.dims[0], period = period_of(op);
  const bool norm = plain.norm.rank != 0;
  const Problem p{deal,
                  partial,
                  gpu.counters,
                  period,
                  norm ? op.x.as<const float>() : nullptr,
                  norm ? op.norm.blocks[0].data : nullptr,
                  tokens,
                  op.weight.cols,
                  op.eps};
  // Without a map of x one of the weights stands for it.
  const TensorMap weights = map_of_weights(op, period);
  const TensorMap x =
      norm ? weights
           : tensor_map<2>(plain.x.as<const bf16>(), {op.weight.cols, tokens}, {1, op.weight.cols}, {kDepth, kTokens});
  const int64_t tiles = int64_t{deal.blocks} * ((tokens + kTokens - 1) / kTokens);
  const int64_t grid = !many ? deal.workers : tiles < gpu.chip->sms ? tiles : gpu.chip->sms;
  constexpr int kStages = stages_of(kTokens);
  const size_t resident = norm ? size_t(deal.depth) * kTokens * kDepth * sizeof(bf16) : 0;
  const size_t ring = norm ? size_t{kStages} * kRows * kDepth * sizeof(bf16) : kStages * step_bytes(kTokens);
  const size_t shared = ring + resident + 2 * kStages * sizeof(uint64_t) +
                        (norm ? kTokens * kNormWarps * sizeof(float) : 0) + sizeof(uint32_t);
  const Shape shape{dim3(unsigned(grid)), dim3(kThreads), shared, 1, gpu.dependent()};
  launch(linear_sm90_kernel<kTokens, many>, Linear::name, shape, gpu.stream, weights, x, p, Epilogue(op),
         live_of(op.x));
}

int64_t tile_of(const Linear& op, const Chip& chip) {
  const int64_t tokens = op.x.dims[0];
  if (tokens > kFew) return (tokens + 255) / 256 * Deal(op.weight, chip).blocks < chip.sms ? 128 : 256;
  int64_t tile = kNormTokens;
  while (tile < tokens) tile *= 2;
  return tile;
}

}  // namespace

size_t workspace_sm90(const Linear& op, const Chip& chip) {
  const Deal deal(op.weight, chip);
  const int64_t slots = op.x.dims[0] > kFew ? chip.sms : 2 * deal.workers;
  return (norms_here(op) ? 0 : norm_bytes(op)) + size_t(slots * tile_of(op, chip) / 2 * kConsumers) * sizeof(float);
}

void run_sm90(const Linear& op, const Gpu& gpu) {
  const bool here = norms_here(op);
  const Linear plain = here ? op : normalised(op, gpu);
  auto* const partial = reinterpret_cast<float*>(gpu.workspace + (here ? 0 : norm_bytes(op)));
  const int64_t tile = tile_of(op, *gpu.chip);
  if (op.x.dims[0] > kFew)
    return tile == 128 ? start<128, true>(op, plain, partial, gpu) : start<256, true>(op, plain, partial, gpu);
  if (tile == 8) return start<8, false>(op, plain, partial, gpu);
  if (tile == 16) return start<16, false>(op, plain, partial, gpu);
  if (tile == 32) return start<32, false>(op, plain, partial, gpu);
  if (tile == 64) return start<64, false>(op, plain, partial, gpu);
  if (tile == 128) return start<128, false>(op, plain, partial, gpu);
  start<256, false>(op, plain, partial, gpu);
}

}  // namespace cria::CRIA_MACHINE
