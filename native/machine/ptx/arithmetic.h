// ptx/arithmetic.h - instructions of one thread that CUDA has no name for. PTX ISA 9.7.3 (ex2), 9.7.9 (cvt).
#pragma once
#include "../simt.h"

namespace cria::CRIA_MACHINE {

CRIA_DEVICE float exp2_fast(float x) {  // 2 ulp; 0 where that is below the smallest normal number
#ifdef CRIA_ON_GPU
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = __builtin_exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
#endif
}

// The two bf16 of a register, and a register of two numbers: one instruction, where two conversions take the slow unit.
CRIA_DEVICE float low_half(uint32_t pair) {
  float f;
  const uint32_t u = pair << 16;
  std::memcpy(&f, &u, 4);
  return f;
}
CRIA_DEVICE float high_half(uint32_t pair) {
  float f;
  const uint32_t u = pair & 0xffff0000u;
  std::memcpy(&f, &u, 4);
  return f;
}
CRIA_DEVICE uint32_t bf16_pair(float low, float high) {
#ifdef CRIA_ON_GPU
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return uint32_t(bf16(low).bits) | uint32_t(bf16(high).bits) << 16;
#endif
}

}  // namespace cria::CRIA_MACHINE
