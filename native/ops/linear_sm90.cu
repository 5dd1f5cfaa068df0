// linear_sm90.cu - y = x W^T with TMA and wgmma: weights on the M side, tokens on the N side, whatever their number.
//
// A step is 128 rows of the weight times 64 elements of K. One warp requests steps, a ring of them is in flight; two
// warpgroups multiply, 64 rows each. K is cut into segments, the same for all rows, from the shape of the weight and
// the GPU alone: a segment is one chain of MMAs, and segments are added in their order, so a token has the same bits in
// every kernel here:
//   few tokens: all segments, block of rows after block of rows, are dealt to workers, one for each multiprocessor, in
//   equal runs. Of those that share a block the last one to finish adds up.
//   many: a worker does whole tiles, and keeps the sum of earlier segments in registers of their own.
#include "../machine/ptx/grid.h"
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/wgmma.h"
#include "../machine/tile/arrive.h"
#include "linear_deal.cuh"
#include "linear_epilogue.cuh"
#include "rms_norm.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kConsumers = 256;
constexpr int kFew = 256;       // tokens; more are many
constexpr int kNormTokens = 8;  // up to here every worker normalises x itself
// If x is no larger. With 4096 columns that leaves 98 KB of a multiprocessor for a block of the kernel that follows: a
// linear has room (68 KB), attention with heads of 128 has none (101 KB) and begins when this block ends.
constexpr size_t kNormBytes = size_t{80} << 10;
static_assert(kConsumers == kNormThreads);

// The producer is one warp; where sums take many registers it is a warpgroup, which gives the consumers its own.
constexpr bool is_wide(int tokens) { return tokens > 128; }
constexpr int threads_of(int tokens) { return kConsumers + (is_wide(tokens) ? 128 : 32); }
constexpr int stages_of(int tokens) { return tokens == 128 ? 6 : tokens == 192 ? 5 : 4; }
constexpr size_t step_bytes(int tokens) { return size_t(kRows + tokens) * kDepth * sizeof(bf16); }

constexpr int kPrefetch = 8;  // steps beyond the ring that come into L2: 132 x 8 x 16 KB are a third of it

struct Problem {
  Deal deal;
  // With few tokens: sums of segments, [kTokens / 2][kConsumers] each, of a worker [segments]: those of his first
  // block, and in the last place what he has added up from segment 0 on.
  float* partial;
  uint32_t* counters;  // [blocks]
  int64_t period;      // of pairs of weight rows
  // The norm of x [tokens, cols], where it is done here.
  const float* x;
  const bf16* norm;
  int64_t tokens, cols;
  float eps;
};

// Shared memory: a ring of [weights [kRows, kDepth], tokens [kTokens, kDepth]], or of weights alone and then all of x
// as [depth][kTokens, kDepth]; full and empty barriers; sums of squares [kTokens][warps]; a flag.
template <int kTokens>
struct Ring {
  static constexpr int kStages = stages_of(kTokens);
  bf16* steps;
  int step;          // elements of one
  bf16* all_tokens;  // after their norm, or nullptr
  uint64_t *full, *empty;
  float* sums;
  uint32_t* flag;

  CRIA_DEVICE Ring(bf16* shared, const Problem& p)
      : steps(shared), step((kRows + kTokens) * kDepth), all_tokens(nullptr) {
    const bool normed_here = kTokens == kNormTokens && p.norm;
    if (normed_here) step = kRows * kDepth;
    bf16* const end = steps + kStages * step;
    if (normed_here) all_tokens = end;
    full = reinterpret_cast<uint64_t*>(end + (normed_here ? p.deal.depth * kTokens * kDepth : 0));
    empty = full + kStages;
    sums = reinterpret_cast<float*>(empty + kStages);
    flag = reinterpret_cast<uint32_t*>(sums + (normed_here ? kTokens * kNormWarps : 0));
  }
  // Of the i-th step of this worker, which is step k of its block.
  CRIA_DEVICE bf16* weights(int i) const { return steps + i % kStages * step; }
  CRIA_DEVICE bf16* tokens(int i, int k) const {
    return all_tokens ? all_tokens + k * kTokens * kDepth : weights(i) + kRows * kDepth;
  }
};

struct Consumers {
  CRIA_DEVICE void operator()() const { sync_warps(1, kConsumers); }
};

// All lanes of a warp call it; one requests.
template <int kTokens, bool many>
CRIA_DEVICE void produce(const TensorMap* weights, const TensorMap* tokens, const Problem& p, const Live& live,
                         const Ring<kTokens>& ring, bool requests) {
  constexpr int kStages = Ring<kTokens>::kStages;
  const uint64_t weight_policy = cache_policy(many ? Evict::last : Evict::first);
  const uint64_t token_policy = cache_policy(Evict::last);
  if (many) grid_wait();
  const Work<kTokens, many> work(p.deal, many ? live_rows(live) : 0);
  // visit(what a tensor copy of the weights of step i takes)
  const auto weights_of = [&](int i, auto visit) {
    const Place at = work.at(i);
    const int row = at.block * kRows, k = at.k * kDepth;
    if (p.period == 0) {
      const int box[2] = {k, row};
      visit(box);
    } else {
      const int box[5] = {k, 0, 0, int(row % p.period) / 16, int(row / p.period)};
      visit(box);
    }
  };
  const auto request_weights = [&](int i) {
    uint64_t* const full = ring.full + i % kStages;
    mbarrier_arrive(full, uint32_t(ring.step) * uint32_t(sizeof(bf16)));
    weights_of(i, [&](const auto& box) { tensor_copy(ring.weights(i), weights, box, full, weight_policy); });
  };
  const auto request_tokens = [&](int i) {
    if (ring.all_tokens) return;
    const Place at = work.at(i);
    tensor_copy<2>(ring.tokens(i, 0), tokens, {at.k * kDepth, at.token}, ring.full + i % kStages, token_policy);
  };
  const int ahead = many ? 0 : work.count < kStages ? work.count : kStages;
  // Weights do not depend on the kernel before. While it runs memory may be idle: more of them come as far as L2.
  if (requests) {
    prefetch_map(weights);
    for (int i = 0; i < ahead; i++) request_weights(i);
    for (int i = ahead; i < ahead + kPrefetch && i < work.count && !many; i++)
      weights_of(i, [&](const auto& box) { tensor_prefetch(weights, box); });
  }
  if (!many) grid_wait();
  if (!requests) return;
  for (int i = 0; i < ahead; i++) request_tokens(i);
  for (int i = ahead; i < work.count; i++) {
    if (i >= kStages) mbarrier_wait(ring.empty + i % kStages, uint32_t(i / kStages - 1) % 2);
    request_weights(i);
    request_tokens(i);
  }
}

// x after its norm, as wgmma wants it; zeros beyond the last row and column. By all consumers.
template <int kTokens>
CRIA_DEVICE void normalise(const Problem& p, const Ring<kTokens>& ring) {
  const int warp = int(threadIdx.x) / 32, columns = p.deal.depth * kDepth;
  for (int t = 0; t < p.tokens; t++) {
    const float sum = sum_of_squares(p.x + t * p.cols, p.cols);
    if (threadIdx.x % 32 == 0) ring.sums[t * kNormWarps + warp] = sum;
  }
  Consumers{}();
  for (int t = 0; t < kTokens; t++) {
    const float scale = t < p.tokens ? norm_scale(ring.sums + t * kNormWarps, p.cols, p.eps) : 0.0f;
    for (int d = int(threadIdx.x) * 4; d < columns; d += kConsumers * 4) {
      Pack<bf16, 4> y{};
      const bool inside = guard(t < p.tokens && d < p.cols);
      if (inside) y = normed(p.x + t * p.cols, p.norm, d, scale);
      store(ring.tokens(0, d / kDepth) + swizzled(t, d % kDepth), y);
    }
  }
  publish_shared();
  Consumers{}();
}

// The sums of a tile that a thread has, as wgmma lays them out.
template <int kTokens>
struct Sums {
  float at[kTokens / 2];

  // f(sum, its place among those of all threads)
  template <class F>
  CRIA_DEVICE void each(F f) {
    CRIA_UNROLL
    for (int i = 0; i < kTokens / 2; i++) f(at[i], i * kConsumers + int(threadIdx.x));
  }
  // Segment [begin, end) of K of the block at step i.
  CRIA_DEVICE void multiply(const Ring<kTokens>& ring, int& i, int begin, int end) {
    constexpr int kStages = Ring<kTokens>::kStages;
    const int warp = int(threadIdx.x) / 32;
    const auto release = [&](int step) {
      if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + step % kStages);
    };
    CRIA_UNROLL
    for (float& f : at) f = 0;
    wgmma_registers(at);
    for (int k = begin; k < end; k++, i++) {
      mbarrier_wait(ring.full + i % kStages, uint32_t(i / kStages) % 2);
      const bf16 *const a = ring.weights(i) + warp / 4 * 64 * kDepth, *const b = ring.tokens(i, k);
      wgmma_fence();
      CRIA_UNROLL
      for (int step = 0; step < kDepth; step += 16)
        wgmma_64xnx16<kTokens>(at, matrix_descriptor(a + step), matrix_descriptor(b + step));
      wgmma_commit();
      wgmma_wait<1>();
      if (k > begin) release(i - 1);
    }
    wgmma_wait<0>();
    wgmma_registers(at);
    release(i - 1);
  }
};

template <int kTokens, bool many>
CRIA_DEVICE void consume(const Problem& p, const Epilogue& epilogue, const Live& live, const Ring<kTokens>& ring) {
  const Deal& deal = p.deal;
  grid_wait();
  const int64_t alive = live_rows(live);
  if (ring.all_tokens) normalise(p, ring);
  const Work<kTokens, many> work(deal, alive);
  const auto finish = [&](const Place& at, const Sums<kTokens>& sum) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const auto rows = epilogue.rows_at(at.block * kRows + warp * 16 + lane / 4);
    CRIA_UNROLL
    for (int j = 0; j < kTokens / 8; j++) {
      const int first = not_before(at.token + j * 8 + lane % 4 * 2);  // the addresses of all do not fit into registers
      for (int e = 0; e < 2; e++) {
        const int token = first + e;
        const bool exists = guard(token < alive);
        if (exists) epilogue.finish<kTokens <= kRopeTokens>(rows, token, sum.at[j * 4 + e], sum.at[j * 4 + e + 2]);
      }
    }
  };
  const auto end_of = [&](int segment) {
    return (segment + 1) * deal.length < deal.depth ? (segment + 1) * deal.length : deal.depth;
  };
  Sums<kTokens> sum;
  if constexpr (many) {
    Sums<kTokens> total;
    for (int i = 0; i < work.count;) {
      const Place at = work.at(i);
      total.multiply(ring, i, 0, end_of(0));
      for (int segment = 1; segment < deal.segments; segment++) {
        sum.multiply(ring, i, segment * deal.length, end_of(segment));
        CRIA_UNROLL
        for (int j = 0; j < kTokens / 2; j++) total.at[j] += sum.at[j];
      }
      finish(at, total);
    }
  } else {
    for (int i = 0; i < work.count;) {
      const Place at = work.at(i);
      // The segments of this block that are done here: [begin, end).
      const int steps = work.count - i > deal.depth - at.k ? deal.depth - at.k : work.count - i;
      const int begin = at.k / deal.length, end = (at.k + steps + deal.length - 1) / deal.length;
      const int unit = at.block * deal.segments;
      const auto partial_of = [&](int worker, int segment) {
        const int own = segment == 0 ? deal.segments - 1 : unit + segment - deal.begin(worker);
        return p.partial + (int64_t{worker} * deal.segments + own) * (kTokens / 2 * kConsumers);
      };
      const bool whole = end - begin == deal.segments;
      for (int segment = begin; segment < end; segment++) {
        sum.multiply(ring, i, segment * deal.length, end_of(segment));
        // What begins with segment 0 is added up here; other segments wait for those before them.
        float* const kept = partial_of(int(blockIdx.x), begin == 0 ? 0 : segment);
        if (begin == 0 && segment > 0) sum.each([&](float& s, int j) { s = kept[j] + s; });
        if (!whole || segment + 1 < end) sum.each([&](float s, int j) { kept[j] = s; });
      }
      if (!whole) {
        const int from = deal.worker_of(unit), to = deal.worker_of(unit + deal.segments - 1);
        if (!last_to_arrive(p.counters + at.block, uint32_t(to - from + 1), ring.flag, Consumers{})) continue;
        const float* const first = partial_of(from, 0);
        sum.each([&](float& s, int j) { s = first[j]; });
        for (int segment = deal.begin(from + 1) - unit; segment < deal.segments; segment++) {
          const float* const more = partial_of(deal.worker_of(unit + segment), segment);
          sum.each([&](float& s, int j) { s += more[j]; });
        }
      }
      finish(at, sum);
    }
  }
}

template <int kTokens, bool many>
__global__ void __launch_bounds__(threads_of(kTokens), kTokens <= 64 ? 2 : 1)
    linear_sm90_kernel(const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap tokens, Problem p,
                       Epilogue epilogue, Live live) {
  if constexpr (kHasWgmma) {
    CRIA_SHARED(bf16, shared);
    const Ring<kTokens> ring(shared, p);
    if (threadIdx.x == 0)
      for (int s = 0; s < ring.kStages; s++) {
        mbarrier_init(ring.full + s, 1);
        mbarrier_init(ring.empty + s, kConsumers / 32);
      }
    sync_block();
    grid_launch_dependents();
    if (threadIdx.x >= kConsumers) {
      if constexpr (is_wide(kTokens)) give_registers<40>();
      produce<kTokens, many>(&weights, &tokens, p, live, ring, threadIdx.x == kConsumers);
    } else {
      if constexpr (is_wide(kTokens)) take_registers<232>();
      consume<kTokens, many>(p, epilogue, live, ring);
    }
  }
}

TensorMap map_of_weights(const Linear& op, int64_t period) {
  const Weight& w = op.weight;
  const bf16* const data = w.blocks[0].data;
  if (period == 0) return tensor_map<2>(data, {w.cols, w.rows}, {1, w.cols}, {kDepth, kRows});
  // Eight rows, both halves of a period, eights, periods: row_of() as axes.
  const int eights = period < w.rows ? int(period / 16) : kRows / 16;
  return tensor_map<5>(data, {w.cols, 8, 2, period / 16, w.rows / period},
                       {1, w.cols, period / 2 * w.cols, 8 * w.cols, period * w.cols},
                       {kDepth, 8, 2, eights, kRows / 16 / eights});
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
  const Shape shape{dim3(unsigned(grid)), dim3(threads_of(kTokens)), shared, 1, gpu.dependent()};
  launch(linear_sm90_kernel<kTokens, many>, Linear::name, shape, gpu.stream, weights, x, p, Epilogue(op),
         live_of(op.x));
}

int64_t tile_of(const Linear& op, const Chip& chip) {
  const int64_t tokens = op.x.dims[0];
  if (tokens > kFew) return (tokens + 191) / 192 * Deal(op.weight, chip).blocks < chip.sms ? 128 : 192;
  int64_t tile = kNormTokens;
  while (tile < tokens) tile *= 2;
  return tile;
}
size_t norm_apart(const Linear& op) { return norms_here(op) ? 0 : norm_bytes(op); }

}  // namespace

size_t workspace_sm90(const Linear& op, const Chip& chip) {
  const Deal deal(op.weight, chip);
  const int64_t places = op.x.dims[0] > kFew ? 0 : int64_t{deal.workers} * deal.segments;
  return norm_apart(op) + size_t(places * tile_of(op, chip) / 2 * kConsumers) * sizeof(float);
}

void run_sm90(const Linear& op, const Gpu& gpu) {
  const Linear plain = norms_here(op) ? op : normalised(op, gpu);
  auto* const partial = reinterpret_cast<float*>(gpu.workspace + norm_apart(op));
  const int64_t tile = tile_of(op, *gpu.chip);
  if (tile == 192) return start<192, true>(op, plain, partial, gpu);
  if (op.x.dims[0] > kFew) return start<128, true>(op, plain, partial, gpu);
  if (tile == 8) return start<8, false>(op, plain, partial, gpu);
  if (tile == 16) return start<16, false>(op, plain, partial, gpu);
  if (tile == 32) return start<32, false>(op, plain, partial, gpu);
  if (tile == 64) return start<64, false>(op, plain, partial, gpu);
  if (tile == 128) return start<128, false>(op, plain, partial, gpu);
  start<256, false>(op, plain, partial, gpu);
}

}  // namespace cria::CRIA_MACHINE
