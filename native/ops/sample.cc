// sample.cc - no sort: the kept set is everything from a threshold up, found by radix descent on the ordered bits of
// floats.
#include "sample.h"

#include "log_softmax.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

// Orders like the float: a < b as numbers <=> key(a) < key(b). -0 + 0 is 0: they are equal.
CRIA_INLINE uint32_t key_of(float f) {
  const uint32_t u = bits_as<uint32_t>(f + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Philox4x32-10 (Salmon et al., SC 2011), the first word: counter (id, position, 0, 0), key (seed low, seed high).
uint32_t philox(uint32_t id, uint32_t position, uint32_t low, uint32_t high) {
  uint32_t c[4] = {id, position, 0, 0};
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ low, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ high,
                              uint32_t(a)};
    std::memcpy(c, next, sizeof c);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return c[0];
}

// -log(-log(u)), u in the middle of one of 2^32 steps of (0, 1): at most 23.
double gumbel(uint32_t random) { return -__builtin_log(-__builtin_log((double(random) + 0.5) * 0x1p-32)); }
constexpr double kMostGumbel = 23.0;

// The smallest key whose suffix - all entries with that key or a larger one, among those from `from` up - has a weight
// of at least `wanted`: four passes, a byte of the key each. weight(i) is 1 to count, or a probability.
template <class Weight>
uint32_t threshold(const float* logits, int64_t vocab, uint32_t from, double wanted, Weight weight) {
  uint32_t prefix = 0, mask = 0;
  double above = 0;  // weight of keys larger than every one with this prefix
  for (int shift = 24; shift >= 0; shift -= 8) {
    double bins[256] = {};
    for (int64_t i = 0; i < vocab; i++) {
      const uint32_t key = key_of(logits[i]);
      if (key >= from && (key & mask) == prefix) bins[key >> shift & 255u] += weight(i);
    }
    int bin = 255, lowest = -1;
    for (; bin >= 0; bin--) {
      if (bins[bin] > 0) lowest = bin;
      if (bins[bin] > 0 && above + bins[bin] >= wanted) break;  // never an empty suffix, even for 0
      above += bins[bin];
    }
    if (bin < 0) {  // rounding: the whole set falls short of `wanted` by an ulp
      if (lowest < 0) return from;
      bin = lowest;
      above -= bins[bin];
    }
    prefix |= uint32_t(bin) << shift;
    mask |= 255u << shift;
  }
  return prefix;
}

int64_t draw(const Sample& op, int64_t row, const float* logits, int64_t vocab, float max) {
  const float temperature = static_cast<const float*>(op.temperature.data)[row];
  if (!(temperature > 0)) {
    int64_t i = 0;
    while (logits[i] != max) i++;
    return i;
  }
  const float top_p = static_cast<const float*>(op.topP.data)[row],
              min_p = static_cast<const float*>(op.minP.data)[row];
  const int32_t top_k = static_cast<const int32_t*>(op.topK.data)[row];
  const double inverse = 1.0 / double(temperature);
  uint32_t kept = 0;  // keys from here on
  if (top_k > 0 && top_k < vocab)
    kept = threshold(logits, vocab, 0, double(top_k), [](int64_t) __attribute__((always_inline)) { return 1.0; });
  if (top_p < 1) {
    const auto weight = [&](int64_t i) __attribute__((always_inline)) {
      return __builtin_exp((double(logits[i]) - double(max)) * inverse);
    };
    double total = 0;
    for (int64_t i = 0; i < vocab; i++)
      if (key_of(logits[i]) >= kept) total += weight(i);
    kept = threshold(logits, vocab, kept, double(top_p) * total, weight);
  }
  const double least = min_p >= 1  ? double(max)
                       : min_p > 0 ? double(max) + double(temperature) * __builtin_log(double(min_p))
                                   : -__builtin_inf();
  const auto* seed = static_cast<const uint32_t*>(op.seed.data) + 2 * row;
  const auto position = uint32_t(static_cast<const int32_t*>(op.position.data)[row]);
  double best = -__builtin_inf();
  int64_t id = 0;
  for (int64_t i = 0; i < vocab; i++) {
    const double scaled = double(logits[i]) * inverse;
    if (key_of(logits[i]) < kept || double(logits[i]) < least || scaled + kMostGumbel <= best) continue;
    const double value = scaled + gumbel(philox(uint32_t(i), position, seed[0], seed[1]));
    if (value > best) best = value, id = i;
  }
  return id;
}

}  // namespace

size_t workspace(const Sample&, int) { return 0; }

void run(const Sample& op, Worker& w) {
  const int64_t vocab = op.logits.dims[1];
  for (int64_t begin, end; w.take(begin, end, live_rows(op.logits));)
    for (int64_t row = begin; row < end; row++) {
      const float* logits = static_cast<const float*>(op.logits.data) + row * vocab;
      const Statistics s = look_at(logits, vocab);
      const int64_t id = s.finite ? draw(op, row, logits, vocab, s.max) : 0;
      static_cast<int32_t*>(op.ids.data)[row] = int32_t(id);
      static_cast<float*>(op.logprobs.data)[row] = s.finite ? s.logprob(logits[id]) : __builtin_nanf("");
      static_cast<int32_t*>(op.status.data)[row] = s.finite ? 0 : 1;
      if (op.sampled.rank) static_cast<int32_t*>(op.sampled.data)[row] = int32_t(id);
    }
}

}  // namespace cria::CRIA_ISA
