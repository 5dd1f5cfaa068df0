// sample_numbers.cuh - arithmetic of logits: ordered keys of floats, random numbers. For logit_slices.cuh.
#pragma once
#include "../machine/simt.h"

namespace cria::CRIA_MACHINE {
namespace {

CRIA_DEVICE void atomic_add(uint32_t* sum, uint32_t value) {
#ifdef CRIA_ON_GPU
  atomicAdd(sum, value);
#else
  *sum += value;
#endif
}
// In shared memory, where only additions of 32 bits are one instruction: low half first, and its carry into the other.
CRIA_DEVICE void atomic_add(uint64_t* sum, uint64_t value) {
#ifdef CRIA_ON_GPU
  auto* const halves = reinterpret_cast<uint32_t*>(sum);
  const auto low = uint32_t(value), was = atomicAdd(halves, low);
  const uint32_t high = uint32_t(value >> 32) + (was + low < was);
  if (high != 0) atomicAdd(halves + 1, high);
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
constexpr float kMostGumbel = 33 * 0.6931472f;
constexpr float kLowest = -__builtin_inff();

}  // namespace
}  // namespace cria::CRIA_MACHINE
