// tile/softmax.h - a softmax in base 2 over keys that come in parts: sums of the parts, and how they become one.
#pragma once
#include "../ptx/mma.h"
#include "reduce.h"

namespace cria::CRIA_MACHINE {

constexpr float kLowest = -__builtin_inff();

// The exponent that all weights of a row are taken relative to; no key was seen: 0, so that weights are 0 and not NaN.
CRIA_DEVICE float base_of(float highest) { return highest == kLowest ? 0.0f : highest; }

// How the sums over two sets of keys become one: highest scores a and b, factors of the sums.
struct Merge {
  float highest, of_a, of_b;
  CRIA_DEVICE Merge(float a, float b) : highest(a > b ? a : b) {
    of_a = exp2_fast(a - base_of(highest));
    of_b = exp2_fast(b - base_of(highest));
  }
  CRIA_DEVICE float operator()(float a, float b) const { return fused(b, of_b, a * of_a); }
};

// Two weights, each the sum of two bf16: 16 bits of it, where one alone has 8.
struct WeightPair {
  uint32_t high, low;
  CRIA_DEVICE WeightPair(float a, float b) : high(bf16_pair(a, b)) {
    low = bf16_pair(a - low_half(high), b - high_half(high));
  }
};

// Bits 15 and 31: whether that one of two bf16 is infinite or NaN.
CRIA_DEVICE uint32_t not_finite(uint32_t pair) { return ((pair & 0x7f807f80u) + 0x00800080u) & 0x80008000u; }

}  // namespace cria::CRIA_MACHINE
