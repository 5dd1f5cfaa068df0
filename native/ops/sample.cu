// sample.cu - a block per row, no sort: the kept set is everything from a threshold up, found by radix descent on the
// ordered bits of floats. Greedy rows look twice at their logits and are done.
//
// Which thread sees which logit depends on the vocabulary alone, sums of floats have one order, and what is added with
// atomics is an integer: a row gives the same bits wherever it is.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/reduce.h"
#include "../machine/tile/vectors.h"
#include "sample.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr unsigned kMostThreads = 1024, kFewThreads = 128, kMostWarps = kMostThreads / 32;
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
  double scale;  // of probabilities as integers: the sum of `vocab` of them fits
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
};

CRIA_DEVICE void atomic_add(uint32_t* sum, uint32_t value) {
#ifdef CRIA_ON_GPU
  atomicAdd(sum, value);
#else
  *sum += value;
#endif
}
CRIA_DEVICE void atomic_add(uint64_t* sum, uint64_t value) {
#ifdef CRIA_ON_GPU
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
#else
  *sum += value;
#endif
}
CRIA_DEVICE int leading_zeros(uint32_t u) {
#ifdef CRIA_ON_GPU
  return __clz(int(u));
#else
  return u ? __builtin_clz(u) : 32;
#endif
}
// Rounded on its own, never fused with an addition that follows.
CRIA_DEVICE double product(double a, double b) {
#ifdef CRIA_ON_GPU
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Orders like the float: a < b as numbers <=> key(a) < key(b). -0 + 0 is 0: they are equal.
CRIA_DEVICE uint32_t key_of(float f) {
  f += 0.0f;
  uint32_t u;
  memcpy(&u, &f, 4);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
CRIA_DEVICE float value_of(uint32_t key) {
  const uint32_t u = key & 0x80000000u ? key ^ 0x80000000u : ~key;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// Philox4x32-10 (Salmon et al., SC 2011), the first word: counter (id, position, 0, 0), key (seed low, seed high).
CRIA_DEVICE uint32_t philox(uint32_t id, uint32_t position, uint32_t low, uint32_t high) {
  uint32_t c0 = id, c1 = position, c2 = 0, c3 = 0;
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0, b = uint64_t{0xCD9E8D57u} * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ low;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ high;
    c3 = uint32_t(a);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return c0;
}

// -log(-log(u)), u in the middle of one of 2^32 steps of (0, 1).
CRIA_DEVICE double gumbel(uint32_t random) { return -log(-log((double(random) + 0.5) * 0x1p-32)); }
// Not less than that: -log(u) >= 1 - u >= 2^-(zeros + 1).
CRIA_DEVICE float most_gumbel(uint32_t random) { return float(leading_zeros(~random) + 1) * 0.6931472f; }

struct Row {
  const float* logits;
  int64_t vocab;

  // visit(logit, id) for the ids of this thread, in ascending order.
  template <class Visit>
  CRIA_DEVICE void each(Visit visit) const {
    const bool vectors = vocab % 4 == 0 && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
    for (int64_t i = int64_t{threadIdx.x} * 4; i < vocab; i += int64_t{blockDim.x} * 4) {
      if (vectors) {
        const auto v = load<F32x4>(logits + i);
        for (int j = 0; j < 4; j++) visit(v.at[j], i + j);
        continue;
      }
      for (int64_t j = i; j < i + 4; j++) {
        const bool exists = guard(j < vocab);
        if (exists) visit(logits[j], j);
      }
    }
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
    row.each([&](float logit, int64_t) {
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
  grid_wait();
  const int64_t at = blockIdx.x;
  if (!is_live(live, at)) return;
  const Row row{op.logits + at * op.vocab, op.vocab};
  const unsigned warp = threadIdx.x / 32;

  // The largest logit above, the lowest id that has it below: as the complement, so that the maximum finds it.
  float highest = -__builtin_inff();
  int64_t lowest_id = 0;
  bool nan = false;
  row.each([&](float logit, int64_t id) {
    nan |= logit != logit;
    if (logit > highest) highest = logit, lowest_id = id;
  });
  const uint64_t mine = nan ? ~uint64_t{0} : uint64_t{key_of(highest)} << 32 | uint32_t(~uint32_t(lowest_id));
  const uint64_t first = reduce_block(mine, Max{}, shared->first);
  const auto first_key = uint32_t(first >> 32);
  if (first_key >= key_of(__builtin_inff()) || first_key == key_of(-__builtin_inff())) {
    if (threadIdx.x > 0) return;
    op.ids[at] = 0;
    op.logprobs[at] = __builtin_nanf("");
    op.status[at] = 1;
    if (op.sampled) op.sampled[at] = 0;
    return;
  }
  const float max = value_of(first_key);
  uint32_t id = ~uint32_t(first);

  float sum = 0;
  row.each([&](float logit, int64_t) { sum += expf(logit - max); });
  sum = reduce_block(sum, Sum{}, shared->sums);

  const float temperature = op.temperature[at];
  if (temperature > 0) {
    const double inverse = 1.0 / double(temperature);
    const float least = least_kept(op, at, row, max, inverse, shared);
    const uint32_t low = op.seed[2 * at], high = op.seed[2 * at + 1], position = uint32_t(op.position[at]);
    // Every thread starts from the draw of the largest logit. A bound in float32 tells which others need theirs, which
    // takes two logarithms in float64: few. The slack is for its rounding; NaN and infinity never skip.
    double best = product(double(max), inverse) + gumbel(philox(id, position, low, high));
    const float rough = float(inverse), slack = 1e-3f + fabsf(max) * rough * 0x1p-21f;
    float limit = float(best) - slack;
    row.each([&](float logit, int64_t i) {
      if (logit < least) return;
      const uint32_t random = philox(uint32_t(i), position, low, high);
      if (fused(logit, rough, most_gumbel(random)) < limit) return;
      const double value = product(double(logit), inverse) + gumbel(random);
      if (!(value > best || (value == best && uint32_t(i) < id))) return;  // NaN, at infinite temperature, never wins
      best = value;
      limit = float(best) - slack;
      id = uint32_t(i);
    });
    const double most = reduce_warp(best, Max{});
    id = ~reduce_max(kAllLanes, best == most ? ~id : 0);
    if (threadIdx.x % 32 == 0) {
      shared->values[warp] = most;
      shared->ids[warp] = id;
    }
    sync_block();
    best = shared->values[0];
    id = shared->ids[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) {
      const double value = shared->values[w];
      if (value < best || (value == best && shared->ids[w] >= id)) continue;
      best = value;
      id = shared->ids[w];
    }
  }
  if (threadIdx.x > 0) return;
  op.ids[at] = int32_t(id);
  op.logprobs[at] = (row.logits[id] - max) - float(log(double(sum)));
  op.status[at] = 0;
  if (op.sampled) op.sampled[at] = int32_t(id);
}

}  // namespace

size_t workspace(const Sample&, const Chip&) { return 0; }
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
                          scale};
  const Shape shape{dim3(unsigned(op.logits.dims[0])), dim3(vocab < 4096 ? kFewThreads : kMostThreads), sizeof(Shared),
                    1, gpu.dependent()};
  launch(sample_kernel, Sample::name, shape, gpu.stream, sampling, live_of(op.logits));
}

}  // namespace cria::CRIA_MACHINE
