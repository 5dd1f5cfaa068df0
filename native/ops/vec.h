// vec.h - the vector vocabulary of the CPU kernels, on GCC/Clang vector extensions: one source, four instruction sets.
//
// A kernel file is compiled once per set (CRIA_ISA = scalar, avx2, avx512, avx512bf16), and all its code lives in
// cria::CRIA_ISA. Nothing outside that namespace may be emitted as a weak symbol: the linker would be free to pick the
// AVX-512 copy for everybody. So: no std:: functions that might not be inlined, no members of types of cria proper.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "../core/dtype.h"

#ifndef CRIA_ISA
#define CRIA_ISA scalar
#endif
#define CRIA_INLINE [[gnu::always_inline]] inline

namespace cria::CRIA_ISA {

// Floats in a register: 64, 32 or 16 bytes. Baseline x86-64 has SSE2, so even "scalar" has four.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using vf __attribute__((vector_size(kLanes * 4))) = float;
using vi __attribute__((vector_size(kLanes * 4))) = int32_t;  // also what a comparison of vf gives: -1 or 0 per lane
using vu __attribute__((vector_size(kLanes * 4))) = uint32_t;
using vh __attribute__((vector_size(kLanes * 2))) = uint16_t;  // kLanes bf16
using f4 __attribute__((vector_size(16))) = float;

#ifdef __AVX512F__
constexpr __mmask16 kAll = 0xffff;  // for the maskz_ forms: g++ 12 warns of uninitialised values in the plain ones
#endif

CRIA_INLINE vf splat(float f) { return vf{} + f; }

// --- Loads and stores: any address. memcpy of a whole vector is one unaligned move.

template <class V>
CRIA_INLINE V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
CRIA_INLINE void store_as(void* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}
template <class To, class From>
CRIA_INLINE To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(To));
  return to;
}

// For register tiles, where the compiler cannot know better. in_register(v) is v as a new value: it is not loaded again
// from where it came for every use. still_used(v) keeps its register until here: the last FMA with v then writes over
// its sum, and not over v, which costs a move.
#ifdef __AVX512F__
#define CRIA_REGISTER "v"
#else
#define CRIA_REGISTER "x"
#endif
template <class V>
CRIA_INLINE V in_register(V v) {
  asm("" : "+" CRIA_REGISTER(v));
  return v;
}
template <class V>
CRIA_INLINE void still_used(V v) {
  asm volatile("" : : CRIA_REGISTER(v));
}

// kLanes elements in their order.
CRIA_INLINE vf widen(vh h) {
#if defined(__AVX512F__)  // g++ 12 makes four instructions of the conversions of 16 lanes, and three of 8
  return bits_as<vf>(bits_as<vu>(_mm512_maskz_cvtepu16_epi32(kAll, bits_as<__m256i>(h))) << 16);
#elif defined(__AVX2__)
  return bits_as<vf>(bits_as<vu>(_mm256_cvtepu16_epi32(bits_as<__m128i>(h))) << 16);
#else
  return bits_as<vf>(__builtin_convertvector(h, vu) << 16);
#endif
}
CRIA_INLINE vf load(const float* p) { return load_as<vf>(p); }
CRIA_INLINE vf load(const bf16* p) { return widen(load_as<vh>(p)); }

// Elements 0, 2, 4 ... and 1, 3, 5 ... of 2 kLanes consecutive ones. For bf16 that is one load, one shift and one mask:
// in a little-endian pair the even element is the low half.
CRIA_INLINE vf load_even(const bf16* p) { return bits_as<vf>(load_as<vu>(p) << 16); }
CRIA_INLINE vf load_odd(const bf16* p) { return bits_as<vf>(load_as<vu>(p) & 0xffff0000u); }
template <int first, int... i>
CRIA_INLINE vf every_second(vf a, vf b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i + first)...);
}
using Lanes = std::make_integer_sequence<int, kLanes>;
CRIA_INLINE vf load_even(const float* p) { return every_second<0>(load(p), load(p + kLanes), Lanes{}); }
CRIA_INLINE vf load_odd(const float* p) { return every_second<1>(load(p), load(p + kLanes), Lanes{}); }

// The first n < kLanes elements, zeros after them; reads and writes nothing beyond.
template <class T>
CRIA_INLINE vf load_part(const T* p, int64_t n) {
  T part[kLanes];
  std::memset(part, 0, sizeof part);
  std::memcpy(part, p, size_t(n) * sizeof(T));
  return load(part);
}

// Rounds to nearest, ties to even; NaN becomes 0x7fff, as in bf16(float).
CRIA_INLINE vh narrow(vf v) {
  const vu u = bits_as<vu>(v);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vu kept = v == v ? rounded : vu{} + 0x7fffu;
#if defined(__AVX512F__)
  return bits_as<vh>(_mm512_maskz_cvtepi32_epi16(kAll, bits_as<__m512i>(kept)));
#else
  return __builtin_convertvector(kept, vh);
#endif
}
CRIA_INLINE uint16_t narrow(float f) {
  const uint32_t u = bits_as<uint32_t>(f);
  return f == f ? uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : uint16_t(0x7fff);
}

CRIA_INLINE void store(float* p, vf v) { store_as(p, v); }
CRIA_INLINE void store(bf16* p, vf v) { store_as(p, narrow(v)); }
CRIA_INLINE void store(float* p, float f) { *p = f; }
CRIA_INLINE void store(bf16* p, float f) { p->bits = narrow(f); }
template <class T>
CRIA_INLINE void store_part(T* p, vf v, int64_t n) {
  T part[kLanes];
  store(part, v);
  std::memcpy(p, part, size_t(n) * sizeof(T));
}

// --- Arithmetic

// a b + c. One rounding where the machine has FMA: written out, so that no two loops are contracted differently.
CRIA_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// As the instructions do: b where either is NaN.
CRIA_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
CRIA_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

// Neighbours within each group of four lanes: a0+a1 a2+a3 b0+b1 b2+b3, for every group.
template <int... i>
CRIA_INLINE vf add_pairs(vf a, vf b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 4 * 4 + i % 2 * 2 + (i % 4 / 2) * kLanes)...) +
         __builtin_shufflevector(a, b, (i / 4 * 4 + i % 2 * 2 + (i % 4 / 2) * kLanes + 1)...);
}
// f(q0, q1, ...) over the groups of four lanes, halving: (q0 . q2) . (q1 . q3) of 16 lanes, q0 . q1 of 8.
template <class F>
CRIA_INLINE f4 across_groups(vf v, F f) {
#if defined(__AVX512F__)
  const auto half = f(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  return f(__builtin_shufflevector(half, half, 0, 1, 2, 3), __builtin_shufflevector(half, half, 4, 5, 6, 7));
#elif defined(__AVX2__)
  return f(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7));
#else
  (void)f;
  return v;
#endif
}

// The sums over the lanes of four vectors. One order for all: ((l0+l1)+(l2+l3)) in each group of four lanes, then the
// groups by halves. Three shuffles and adds for four vectors, where four separate sums would take eleven.
CRIA_INLINE f4 hsum4(vf a, vf b, vf c, vf d) {
  const vf v = add_pairs(add_pairs(a, b, Lanes{}), add_pairs(c, d, Lanes{}), Lanes{});
  return across_groups(v, [](auto lo, auto hi) __attribute__((always_inline)) { return lo + hi; });
}
CRIA_INLINE float hsum(vf v) { return hsum4(v, v, v, v)[0]; }
CRIA_INLINE float hmax(vf v) {
  const f4 m = across_groups(v, [](auto lo, auto hi) __attribute__((always_inline)) { return lo > hi ? lo : hi; });
  const float a = m[0] > m[1] ? m[0] : m[1], b = m[2] > m[3] ? m[2] : m[3];
  return a > b ? a : b;
}

// e^x, within 1.1 ulp (measured: 1.05); e^-inf = 0, NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2; the series of e^r to r^7 leaves r^8 / 8! < 5.3e-9, a twentieth of an ulp.
CRIA_INLINE vf vexp(vf x) {
  constexpr float kInverseLn2 = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;    // 355 / 512: n kLn2High is exact for |n| < 2^15, with and without FMA
  constexpr float kLn2Low = -2.12194440e-4f;  // ln2 - kLn2High
  constexpr float kRound = 12582912.0f;       // 1.5 x 2^23: adding it leaves n in the low bits
  x = x < -104.0f ? splat(-104.0f) : x;       // e^-104 < 2^-150, half of the smallest float: 0
  x = x > 89.0f ? splat(89.0f) : x;           // e^89 > 2^128: inf
  const vf shifted = fma(x, splat(kInverseLn2), splat(kRound));
  const vf n = shifted - kRound;
  const vf r = fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), x));
  vf p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r * r, r) + 1.0f;  // r + r^2 (1/2 + ...), then 1: the last rounding is the only large one
  // 2^n as 2^(n/2) 2^(n - n/2): each factor is a normal float, and a denormal result is rounded once.
  const vi i = bits_as<vi>(shifted) - 0x4b400000;
  const vi half = i >> 1;
  return p * bits_as<vf>((half + 127) << 23) * bits_as<vf>((i - half + 127) << 23);
}

}  // namespace cria::CRIA_ISA
