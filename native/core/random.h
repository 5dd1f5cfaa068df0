// random.h - random weights: nearly normal values, from a counter, the same on every device.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace cria {

// The sum of four uniform 16-bit numbers (Irwin-Hall) has mean 2 * 65535 and variance 4 * 65536^2 / 12.
inline float random_scale(float std) { return std / (65536.0f * 0.57735027f); }

// Value i of a sequence, through splitmix64.
CRIA_HOST_DEVICE inline float random_value(uint64_t seed, uint64_t i, float scale) {
  uint64_t z = (seed + 1) * 0x9e3779b97f4a7c15u + i * 0xd1342543de82ef95u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  const int32_t sum = int32_t(z & 0xffff) + int32_t(z >> 16 & 0xffff) + int32_t(z >> 32 & 0xffff) + int32_t(z >> 48);
  return float(sum - 2 * 65535) * scale;
}

}  // namespace cria
