// log_softmax.h - what log-probabilities of a row of logits are made of. For sample.cc and logprobs.cc, which so find
// the same.
#pragma once
#include "vec.h"

namespace cria::CRIA_ISA {

struct Statistics {
  float max;
  bool finite;    // no NaN, no +infinity, and not all -infinity
  float log_sum;  // log of the sum of e^(logit - max)
  CRIA_INLINE float logprob(float logit) const { return (logit - max) - log_sum; }
};

CRIA_INLINE Statistics look_at(const float* logits, int64_t vocab) {
  const float lowest = -__builtin_inff();
  vf highest = splat(lowest);
  vi nan = {};
  const auto chunk = [&](int64_t i) __attribute__((always_inline)) {
    if (i + kLanes <= vocab) return load(logits + i);
    vf part = splat(lowest);
    for (int64_t j = i; j < vocab; j++) part[j - i] = logits[j];
    return part;
  };
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const vf v = chunk(i);
    nan |= vi(v != v);
    highest = vmax(v, highest);
  }
  bool any_nan = false;
  for (int l = 0; l < kLanes; l++) any_nan |= nan[l] != 0;
  const float max = hmax(highest);
  if (any_nan || max == lowest || max == -lowest) return {max, false, 0};
  constexpr int64_t kPart = 64 * kLanes;  // a sum of sums: one of 10^5 logits keeps what a long one would round away
  vf sum = {};
  for (int64_t first = 0; first < vocab; first += kPart) {
    vf part = {};
    for (int64_t i = first; i < first + kPart && i < vocab; i += kLanes) part += vexp(chunk(i) - max);
    sum += part;
  }
  return {max, true, float(__builtin_log(double(hsum(sum))))};
}

}  // namespace cria::CRIA_ISA
