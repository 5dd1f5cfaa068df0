// ceilings.cc - plain loops over memory and registers; counts are multiples of 16 kLanes floats.
#include "ceilings.h"

#include "vec.h"

namespace cria::CRIA_ISA {
namespace {

#ifdef __AVX512BF16__
constexpr int kChains = 14;              // two units, six cycles each, and two to spare
constexpr double kFlops = 4.0 * kLanes;  // of an instruction: two products a lane
#else
constexpr int kChains = 2 * 4 + 2;  // two FMA units, four cycles each, and two to spare
constexpr double kFlops = 2.0 * kLanes;
#endif

float read(const float* data, int64_t count) {
  vf sum[16] = {};
  for (int64_t i = 0; i < count; i += 16 * kLanes)
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) sum[j] += load(data + i + j * kLanes);
  for (int j = 1; j < 16; j++) sum[0] += sum[j];
  return hsum(sum[0]);
}

void copy(float* to, const float* from, int64_t count) { std::memcpy(to, from, size_t(count) * sizeof(float)); }

// The arithmetic that linear uses: bf16 dot products where there are some, FMA elsewhere.
float multiply(int64_t rounds) {
  vf x[kChains];
  for (int j = 0; j < kChains; j++) x[j] = splat(float(j));
#ifdef __AVX512BF16__
  const auto a = bits_as<__m512bh>(splat(0.001f)), b = bits_as<__m512bh>(splat(0.1f));
#else
  const vf a = splat(0.999f), b = splat(0.1f);
#endif
  for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 16
    for (int j = 0; j < kChains; j++) {
#ifdef __AVX512BF16__
      x[j] = _mm512_dpbf16_ps(x[j], a, b);
#else
      x[j] = fma(x[j], a, b);
#endif
    }
  for (int j = 1; j < kChains; j++) x[0] += x[j];
  return hsum(x[0]);
}

}  // namespace

CeilingLoops ceiling_loops() { return {read, copy, multiply, kFlops * kChains}; }

}  // namespace cria::CRIA_ISA
