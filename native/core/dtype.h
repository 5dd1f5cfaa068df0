// dtype.h - element types, and the bf16 that rounds like the hardware.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#define CRIA_HOST_DEVICE __host__ __device__
#else
#define CRIA_HOST_DEVICE
#endif

namespace cria {

enum class DType : uint8_t { bf16, f32, i32, u32 };

constexpr size_t size_of(DType t) { return t == DType::bf16 ? 2 : 4; }
constexpr const char* name_of(DType t) {
  return t == DType::bf16 ? "bf16" : t == DType::f32 ? "f32" : t == DType::i32 ? "i32" : "u32";
}

// bfloat16: the upper half of a float32. Conversion rounds to nearest, ties to even; NaN stays NaN.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  CRIA_HOST_DEVICE explicit bf16(float f) {
#ifdef __CUDA_ARCH__
    bits = __bfloat16_as_ushort(__float2bfloat16_rn(f));  // one instruction
#else
    uint32_t u;
    std::memcpy(&u, &f, 4);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? uint16_t(0x7fff) : uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  }
  CRIA_HOST_DEVICE explicit operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
};
static_assert(sizeof(bf16) == 2);

}  // namespace cria
