// sample.cu - no sort: the kept set is everything from a threshold up, found by radix descent on the ordered bits of
// floats.
//
// A warp looks at a slice of the vocabulary, once (logit_slices.cuh), and where all logits are kept it draws. The
// slices of a row go to several blocks where there are few rows, and the last block to arrive puts them together; if
// the settings leave out tokens, it finds the threshold and draws, alone, from the slices that reach it.
//
// Slices, their sums and the order in which those are added depend on the vocabulary alone, maxima have no order, and
// what is added with atomics is an integer: a row gives the same bits wherever it is and however many blocks it has.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/arrive.h"
#include "logit_slices.cuh"
#include "sample.h"

namespace cria::CRIA_MACHINE {
namespace {

// 11 bits of a key at a time: sign, exponent and two bits more, so that the first pass does not crowd a few bins.
constexpr unsigned kBins = 2048;

struct Sampling {
  const float *logits, *temperature, *top_p, *min_p;
  const int32_t* top_k;
  const uint32_t* seed;
  const int32_t* position;
  int32_t *sampled, *ids;
  float* logprobs;
  int32_t* status;
  int64_t vocab;
  double scale;   // of probabilities as integers: the sum of `vocab` of them fits
  Slice* slices;  // [out, slices]
  uint32_t* counters;
  unsigned blocks;  // of a row
};

// No two uses share a member, which saves the barriers between them.
struct Shared {
  uint64_t bins[kBins];
  uint64_t totals[kMostWarps];
  uint64_t above;
  uint32_t bin;
  uint64_t first[kMostWarps];
  float sums[kMostWarps];
  double values[kMostWarps];
  uint32_t ids[kMostWarps];
  uint32_t arrived;
};

// A warp's draw from the slices it looks at: argmax of logit / T + noise, the lowest id among equals.
struct Draw {
  uint32_t low, high, position;  // seed
  double inverse;                // of the temperature
  float least;                   // smallest logit to draw from
  double best = -__builtin_inf();
  uint32_t id = ~0u;

  CRIA_DEVICE Draw(const Sampling& op, int64_t at, float temperature, float from)
      : low(op.seed[2 * at]),
        high(op.seed[2 * at + 1]),
        position(uint32_t(op.position[at])),
        inverse(1.0 / double(temperature)),
        least(from) {}

  // v: this lane's logits. first: the largest of all lanes, as in Slice. Every lane starts from the draw of that one. A
  // bound in float32 tells which others need theirs, which takes two logarithms in float64: few. The slack is for its
  // rounding; NaN never skips.
  CRIA_DEVICE void look(int64_t slice, const float (&v)[kEach], uint64_t first) {
    const float largest = value_of(uint32_t(first >> 32)), rough = float(inverse);
    const float slack = 1e-3f + fabsf(largest) * rough * 0x1p-21f;
    float limit = float(best) - slack;
    uint32_t candidates = 1u << kEach;  // bit i: v[i]; after those the largest, which is first
    CRIA_UNROLL for (int i = 0; i < kEach; i++) {
      if (v[i] >= least && v[i] != kLowest && !(fused(v[i], rough, kMostGumbel) < limit)) candidates |= 1u << i;
    }
    while (candidates != 0) {
      const int i = 31 - leading_zeros(candidates);
      candidates ^= 1u << i;
      float logit = largest;
      CRIA_UNROLL for (int j = 0; j < kEach; j++) {
        if (i == j) logit = v[j];
      }
      const uint32_t at = i == kEach ? ~uint32_t(first) : uint32_t(Row::id_of(slice, i));
      if (fused(logit, rough, kMostGumbel) < limit) continue;
      const uint32_t random = philox(at, position, low, high);
      if (fused(logit, rough, most_gumbel(random)) < limit) continue;
      const double value = product(double(logit), inverse) + gumbel(random);
      if (!(value > best || (value == best && at < id))) continue;  // NaN never wins
      best = value;
      limit = float(best) - slack;
      id = at;
    }
    const double most = reduce_warp(best, Max{});
    id = ~reduce_max(kAllLanes, best == most ? ~id : 0);
    best = most;
  }
};

// The sum over the threads before this one, and over all. totals: one per warp.
template <class N>
CRIA_DEVICE N sum_before(N value, N& all, N* totals) {
  N before = 0;
  for (unsigned bits = 1; bits < 32; bits *= 2) {
    const N other = shuffle_xor(kAllLanes, value, bits);
    if (threadIdx.x & bits) before += other;
    value += other;
  }
  if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32] = value;
  sync_block();
  all = 0;
  for (unsigned w = 0; w < blockDim.x / 32; w++) {
    if (w < threadIdx.x / 32) before += totals[w];
    all += totals[w];
  }
  return before;
}

// The largest logit such that it and the larger ones, among those from `from` up, weigh wanted(weight of all) or more:
// at least 1, at most all. weight(logit) is 1 to count, or a probability.
template <class N, class Wanted, class Weight>
CRIA_DEVICE float threshold(const Row& row, float from, Wanted wanted, Weight weight, Shared* shared) {
  N* const bins = reinterpret_cast<N*>(shared->bins);
  const unsigned share = kBins / blockDim.x, top = kBins - threadIdx.x * share;  // the first thread has the largest
  uint32_t prefix = 0, mask = 0;
  N missing = 0;
  for (int shift = 21; shift >= 0; shift -= shift > 10 ? 11 : 10) {
    for (unsigned b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = 0;
    sync_block();
    row.each(mask == 0 ? key_of(from) : prefix, [&](float logit) {
      const uint32_t key = key_of(logit);
      if (logit >= from && (key & mask) == prefix) atomic_add(&bins[key >> shift & (kBins - 1)], weight(logit));
    });
    sync_block();
    N mine = 0, all;
    for (unsigned b = top - share; b < top; b++) mine += bins[b];
    const N before = sum_before(mine, all, reinterpret_cast<N*>(shared->totals));
    if (mask == 0) missing = wanted(all);
    if (before < missing && missing <= before + mine) {
      unsigned bin = top;
      N sum = before;
      do sum += bins[--bin];
      while (sum < missing);
      shared->bin = bin;
      shared->above = sum - bins[bin];
    }
    sync_block();
    prefix |= shared->bin << shift;
    mask |= (kBins - 1) << shift;
    missing -= N(shared->above);
  }
  return value_of(prefix);
}

// The smallest logit that is kept.
CRIA_DEVICE float least_kept(const Sampling& op, int64_t at, const Row& row, float max, double inverse,
                             Shared* shared) {
  float least = -__builtin_inff();
  const int32_t top_k = op.top_k[at];
  if (top_k > 0 && top_k < row.vocab)
    least =
        threshold<uint32_t>(row, least, [=](uint32_t) { return uint32_t(top_k); }, [](float) { return 1u; }, shared);
  const float top_p = op.top_p[at];
  if (top_p < 1) {
    const double scale = op.scale;
    const auto wanted = [=](uint64_t all) {
      const double part = ceil(double(top_p) * double(all));
      return part < 1 ? uint64_t{1} : part < double(all) ? uint64_t(part) : all;
    };
    const auto weight = [=](float logit) {
      return uint64_t(exp((double(logit) - double(max)) * inverse) * scale + 0.5);
    };
    least = threshold<uint64_t>(row, least, wanted, weight, shared);
  }
  const float min_p = op.min_p[at];
  if (min_p > 0) {
    const double bound =
        min_p < 1 ? double(max) + product(double(op.temperature[at]), log(double(min_p))) : double(max);
    float above = float(bound);
    if (double(above) < bound) above = value_of(key_of(above) + 1);
    if (above > least) least = above;
  }
  return least;
}

__global__ void __launch_bounds__(kMostThreads) sample_kernel(Sampling op, Live live) {
  CRIA_SHARED(Shared, shared);
  grid_launch_dependents();
  grid_wait();
  const int64_t at = blockIdx.x / op.blocks;
  const bool alive = guard(is_live(live, at));
  if (!alive) return;
  Row row{op.logits + at * op.vocab, op.vocab, op.slices};
  row.slices += at * row.count();
  const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32, part = blockIdx.x % op.blocks;
  const float temperature = op.temperature[at];
  const int32_t top_k = op.top_k[at];
  const bool draws = temperature > 0;
  const bool all_kept = !(top_k > 0 && top_k < row.vocab) && !(op.top_p[at] < 1) && !(op.min_p[at] > 0);

  Draw draw(op, at, temperature, kLowest);
  for (int64_t slice = part + int64_t{op.blocks} * warp; slice < row.count(); slice += int64_t{op.blocks} * warps) {
    float v[kEach];
    row.read(slice, v);
    Slice found = statistics(slice, v);
    if (draws && all_kept) {
      draw.look(slice, v, found.first);
      found.value = draw.best;
      found.id = draw.id;
    }
    if (threadIdx.x % 32 == 0) row.slices[slice] = found;
  }
  if (op.blocks > 1) {
    if (!last_to_arrive(op.counters + at, op.blocks, &shared->arrived)) return;
  } else {
    sync_block();
  }

  const uint64_t first = first_of(row, shared->first);
  if (!is_finite(first)) {
    if (threadIdx.x > 0) return;
    op.ids[at] = 0;
    op.logprobs[at] = __builtin_nanf("");
    op.status[at] = 1;
    if (op.sampled) op.sampled[at] = 0;
    return;
  }
  const float max = value_of(uint32_t(first >> 32));
  uint32_t id = ~uint32_t(first);
  const float sum = sum_of(row, max, shared->sums);

  if (draws) {
    double best = -__builtin_inf();
    const auto merge = [&](double value, uint32_t other) {
      if (value > best || (value == best && other < id)) best = value, id = other;
    };
    id = ~0u;
    if (all_kept) {
      for (int64_t s = threadIdx.x; s < row.count(); s += blockDim.x) merge(row.slices[s].value, row.slices[s].id);
    } else {
      draw.least = least_kept(op, at, row, max, draw.inverse, shared);
      for (int64_t slice = warp; slice < row.count(); slice += warps) {
        const uint64_t largest = row.slices[slice].first;
        if (uint32_t(largest >> 32) < key_of(draw.least)) continue;
        float v[kEach];
        row.read(slice, v);
        draw.look(slice, v, largest);
      }
      merge(draw.best, draw.id);
    }
    const double most = reduce_warp(best, Max{});
    id = ~reduce_max(kAllLanes, best == most ? ~id : 0);
    if (threadIdx.x % 32 == 0) {
      shared->values[warp] = most;
      shared->ids[warp] = id;
    }
    sync_block();
    best = shared->values[0];
    id = shared->ids[0];
    for (unsigned w = 1; w < warps; w++) merge(shared->values[w], shared->ids[w]);
  }
  if (threadIdx.x > 0) return;
  op.ids[at] = int32_t(id);
  op.logprobs[at] = logprob_of(row.logits[id], max, sum);
  op.status[at] = 0;
  if (op.sampled) op.sampled[at] = int32_t(id);
}

}  // namespace

size_t workspace(const Sample& op, const Chip&) { return bytes_of_slices(op.logits); }
void supports(const Sample&) {}

void run(const Sample& op, const Gpu& gpu) {
  const int64_t vocab = op.logits.dims[1];
  double scale = 0x1p62;
  for (int64_t n = vocab; n > 0; n /= 2) scale /= 2;
  const Sampling sampling{op.logits.as<const float>(),
                          op.temperature.as<const float>(),
                          op.topP.as<const float>(),
                          op.minP.as<const float>(),
                          op.topK.as<const int32_t>(),
                          op.seed.as<const uint32_t>(),
                          op.position.as<const int32_t>(),
                          op.sampled.as<int32_t>(),
                          op.ids.as<int32_t>(),
                          op.logprobs.as<float>(),
                          op.status.as<int32_t>(),
                          vocab,
                          scale,
                          reinterpret_cast<Slice*>(gpu.workspace),
                          gpu.counters,
                          blocks_of(op.logits, *gpu.chip)};
  const Shape shape{dim3(unsigned(op.logits.dims[0]) * sampling.blocks), dim3(threads_of(op.logits)), sizeof(Shared), 1,
                    gpu.dependent()};
  launch(sample_kernel, Sample::name, shape, gpu.stream, sampling, live_of(op.logits));
}

}  // namespace cria::CRIA_MACHINE
