// ptx/wgmma.h - tensor cores by the warpgroup: wgmma, matrices read from shared memory. PTX ISA 9.7.15. sm_90a only.
//
// d[64, n] += a[64, 16] b[n, 16]^T. Both lie in shared memory as rows of 64 bf16 in the 128-byte swizzle, as TMA writes
// them; warp w of the group has rows 16 w to 16 w + 15 of d, in fragments of 8 columns like mma.sync:
//   d[4 j + i] is (row g + 8 (i / 2), column 8 j + 2 t + i % 2), lane l with g = l / 4, t = l % 4.
// a may come from registers instead, as fragments of mma.sync; b then may lie transposed, as rows of 64 columns.
// It is asynchronous: between wgmma_commit() and the wait for its group d must not be touched, nor the matrices
// overwritten. What threads have written into shared memory themselves it sees only after publish_shared().
#pragma once
#include "mma.h"

namespace cria::CRIA_MACHINE {

#if defined(CRIA_ON_GPU) && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CRIA_WGMMA_ON_GPU 1
#endif
#if defined(CRIA_ON_GPU) && !defined(CRIA_WGMMA_ON_GPU)
constexpr bool kHasWgmma = false;  // kernels that use it are empty here
#else
constexpr bool kHasWgmma = true;
#endif

// Registers of a thread from here on, a multiple of 8: a warpgroup gives some back, or waits for more.
template <int registers>
CRIA_DEVICE void give_registers() {
#ifdef CRIA_WGMMA_ON_GPU
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}
template <int registers>
CRIA_DEVICE void take_registers() {
#ifdef CRIA_WGMMA_ON_GPU
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}

// Where a matrix lies in shared memory, K-major, eight rows in 1024 bytes. tile: a multiple of 1024 bytes, and then up
// to three times 16 elements of K. Bits: 0-13 address / 16, 16-29 ignored with a swizzle, 1 by custom, 32-45 distance
// of eight rows / 16, 62-63 the swizzle (1: 128 bytes).
CRIA_DEVICE uint64_t matrix_descriptor(const bf16* tile) {
#ifdef CRIA_ON_GPU
  const auto at = uint32_t(__cvta_generic_to_shared(tile));
#else
  const auto at = uint32_t(reinterpret_cast<const unsigned char*>(tile) - block().shared);
#endif
  return (at & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

// The same for a matrix whose rows in memory are K, 64 columns wide; next: elements from 64 columns to the 64 after
// them. Sixteen elements of K are 2048 bytes. Bits 16-29: that distance / 16.
CRIA_DEVICE uint64_t transposed_descriptor(const bf16* tile, int next) {
  return (matrix_descriptor(tile) & ~(uint64_t{0x3fff} << 16)) | uint64_t(next / 8 & 0x3fff) << 16;
}

// The same matrix, so many elements further on in memory.
CRIA_DEVICE uint64_t advanced(uint64_t descriptor, int elements) { return descriptor + uint64_t(elements / 8); }

// Registers of d, and of a, are what they were before: before the first wgmma of a group.
CRIA_DEVICE void wgmma_fence(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
#ifdef CRIA_WGMMA_ON_GPU
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
#else
  if (machine->removed(site)) return;
  int nothing = 0;
  collective(kAllLanes, nothing, "wgmma.fence", site, [](int* const*) { current->warp->fenced = true; });
#endif
}

CRIA_DEVICE void wgmma_commit(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
#ifdef CRIA_WGMMA_ON_GPU
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
#else
  int nothing = 0;
  collective(kAllLanes, nothing, "wgmma.commit_group", site, [](int* const*) {
    current->warp->products.emplace_back();
    current->warp->fenced = false;
  });
#endif
}

// Until at most `pending` of the newest groups are under way.
template <int pending>
CRIA_DEVICE void wgmma_wait(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
#ifdef CRIA_WGMMA_ON_GPU
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
#else
  if (machine->removed(site)) return;
  int nothing = 0;
  collective(kAllLanes, nothing, "wgmma.wait_group", site, [](int* const*) {
    auto& groups = current->warp->products;
    while (int(groups.size()) - 1 > pending) {
      for (const auto& product : groups.front()) product();
      groups.erase(groups.begin());
    }
  });
#endif
}

// Registers of d are read after the wait before this, and written before the fence after it: for the compiler.
template <int n>
CRIA_DEVICE void wgmma_registers([[maybe_unused]] float (&d)[n]) {
#ifdef CRIA_WGMMA_ON_GPU
  CRIA_UNROLL
  for (float& f : d) asm volatile("" : "+f"(f)::"memory");
#endif
}

// The same for fragments of a.
template <int n>
CRIA_DEVICE void wgmma_registers([[maybe_unused]] uint32_t (&a)[n][4]) {
#ifdef CRIA_WGMMA_ON_GPU
  CRIA_UNROLL
  for (auto& fragment : a) CRIA_UNROLL
  for (uint32_t& pair : fragment) asm volatile("" : "+r"(pair)::"memory");
#endif
}

// The same value, which the compiler does not know before: what follows from it is computed here and not kept.
CRIA_DEVICE int not_before(int value) {
#ifdef CRIA_ON_GPU
  asm volatile("" : "+r"(value)::"memory");
#endif
  return value;
}

// Everything that this warp's lanes have written into shared memory can be read by wgmma, and by bulk copies out of it.
// Other warps' products need a barrier besides. All lanes call it.
CRIA_DEVICE void publish_shared(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#else
  if (machine->removed(site)) return;
  int nothing = 0;
  collective(kAllLanes, nothing, "fence.proxy.async", site, [](int* const*) {
    Block& b = block();
    std::memcpy(b.async_view(), b.shared, b.launch->shared);
  });
#endif
}

#ifndef CRIA_ON_GPU
// One element of a matrix as its descriptor says. Swizzle: bits 4-6 of the address are flipped by bits 7-9.
inline float element_of(const unsigned char* shared, uint64_t descriptor, unsigned row, unsigned k, bool transposed) {
  const auto distance = [&](int bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; };
  uint32_t at = distance(0);
  if (transposed)
    at += row / 64 * distance(16) + row % 64 * 2 + k / 8 * distance(32) + k % 8 * 128;
  else
    at += row / 8 * distance(32) + row % 8 * 128 + k * 2;
  at ^= at >> 3 & 0x70;
  bf16 value;
  std::memcpy(&value, shared + at, sizeof value);
  return float(value);
}

// 16 rows of one operand for a warp.
struct Rows16 {
  float at[16][16];  // [row][k]

  Rows16(const unsigned char* shared, unsigned warp, uint64_t descriptor) {
    for (unsigned m = 0; m < 16; m++)
      for (unsigned k = 0; k < 16; k++) at[m][k] = element_of(shared, descriptor, warp * 16 + m, k, false);
  }
  explicit Rows16(const uint32_t* const* fragments) {
    for (unsigned l = 0; l < 32; l++)
      for (unsigned i = 0; i < 8; i++)
        at[l / 4 + i / 2 % 2 * 8][l % 4 * 2 + i / 4 * 8 + i % 2] =
            i % 2 ? high_half(fragments[l][i / 2]) : low_half(fragments[l][i / 2]);
  }
};

// The 16 rows of a warp; d: of every lane.
inline void multiply_16(float* const* d, const Rows16& x, const unsigned char* shared, int n, uint64_t b,
                        bool transposed) {
  float y[16][256];
  for (unsigned k = 0; k < 16; k++)
    for (unsigned c = 0; c < unsigned(n); c++) y[k][c] = element_of(shared, b, c, k, transposed);
  for (unsigned m = 0; m < 16; m++) {
    float sum[256];
    const auto at = [&](unsigned c) -> float& { return d[m % 8 * 4 + c % 8 / 2][c / 8 * 4 + m / 8 * 2 + c % 2]; };
    for (unsigned c = 0; c < unsigned(n); c++) sum[c] = at(c);
    for (unsigned k = 0; k < 16; k++)  // the hardware's order and rounding of these 16 products are its own
      for (unsigned c = 0; c < unsigned(n); c++) sum[c] += x.at[m][k] * y[k][c];
    for (unsigned c = 0; c < unsigned(n); c++) at(c) = sum[c];
  }
}
#endif

#ifdef CRIA_WGMMA_ON_GPU
// Operands: n / 2 registers of d, then one or four of a, then b.
#define CRIA_WGMMA(n, names, at_a, at_b, ...)                                                    \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, 1, 0;\n wgmma.mma_async.sync.aligned.m64n" #n \
               "k16.f32.bf16.bf16 {" names "}, %" #at_a ", %" #at_b ", p, 1, 1, 0, 0;\n}"        \
               : __VA_ARGS__                                                                     \
               : "l"(a), "l"(b)                                                                  \
               : "memory")
#define CRIA_WGMMA_A(n, names, a0, a1, a2, a3, at_b, transposed, ...)                             \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, 1, 0;\n wgmma.mma_async.sync.aligned.m64n" #n  \
               "k16.f32.bf16.bf16 {" names "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #at_b \
               ", p, 1, 1, " #transposed ";\n}"                                                   \
               : __VA_ARGS__                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                               \
               : "memory")
#define CRIA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define CRIA_D8(i) CRIA_D4(i), CRIA_D4(i + 4)
#define CRIA_D16(i) CRIA_D8(i), CRIA_D8(i + 8)
#define CRIA_D32(i) CRIA_D16(i), CRIA_D16(i + 16)
#define CRIA_D64(i) CRIA_D32(i), CRIA_D32(i + 32)
#define CRIA_N4 "%0, %1, %2, %3"
#define CRIA_N8 CRIA_N4 ", %4, %5, %6, %7"
#define CRIA_N16 CRIA_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define CRIA_N32 \
  CRIA_N16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CRIA_N64                                                                     \
  CRIA_N32                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CRIA_N96                                                                     \
  CRIA_N64                                                                           \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define CRIA_N128                                                                                \
  CRIA_N64                                                                                       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#endif

#ifndef CRIA_ON_GPU
// Now, or when somebody waits for it. mine: of every lane d, a in registers or nullptr, and the descriptors.
struct WgmmaOperands {
  float* d;
  const uint32_t* fragments;
  uint64_t a, b;
};
inline void wgmma(int n, WgmmaOperands mine, bool transposed, Site site) {
  if (!current->warp->fenced) misuse("wgmma without a wgmma.fence before its group", site);
  collective(kAllLanes, mine, "wgmma", site, [&](WgmmaOperands* const* lanes) {
    std::array<float*, 32> d;
    std::array<const uint32_t*, 32> fragments;
    for (unsigned l = 0; l < 32; l++) {
      if (lanes[l]->a != lanes[0]->a || lanes[l]->b != lanes[0]->b)
        misuse("wgmma: lanes name different matrices", site);
      d[l] = lanes[l]->d;
      fragments[l] = lanes[l]->fragments;
    }
    Warp& w = *current->warp;
    const unsigned warp = unsigned(&w - w.block->warps.data()) % 4;
    const auto product = [n, d, fragments, warp, transposed, a = lanes[0]->a, b = lanes[0]->b] {
      const unsigned char* const shared = block().async_view();
      const Rows16 rows = fragments[0] ? Rows16(fragments.data()) : Rows16(shared, warp, a);
      multiply_16(d.data(), rows, shared, n, b, transposed);
    };
    if (machine->options().late)
      w.products.back().push_back(product);
    else
      product();
  });
}
#endif

// n: 8, 16, 32, 64, 128, 192 or 256.
template <int n>
CRIA_DEVICE void wgmma_64xnx16(float (&d)[n / 2], uint64_t a, uint64_t b CRIA_AT) {
  static_assert(n == 8 || n == 16 || n == 32 || n == 64 || n == 128 || n == 192 || n == 256);
#ifdef CRIA_ON_GPU
#ifdef CRIA_WGMMA_ON_GPU
  if constexpr (n == 8) CRIA_WGMMA(8, CRIA_N4, 4, 5, CRIA_D4(0));
  if constexpr (n == 16) CRIA_WGMMA(16, CRIA_N8, 8, 9, CRIA_D8(0));
  if constexpr (n == 32) CRIA_WGMMA(32, CRIA_N16, 16, 17, CRIA_D16(0));
  if constexpr (n == 64) CRIA_WGMMA(64, CRIA_N32, 32, 33, CRIA_D32(0));
  if constexpr (n == 128) CRIA_WGMMA(128, CRIA_N64, 64, 65, CRIA_D64(0));
  if constexpr (n == 192) CRIA_WGMMA(192, CRIA_N96, 96, 97, CRIA_D64(0), CRIA_D32(64));
  if constexpr (n == 256) CRIA_WGMMA(256, CRIA_N128, 128, 129, CRIA_D64(0), CRIA_D64(64));
#endif
#else
  wgmma(n, {d, nullptr, a, b}, false, site);
#endif
}

// a from registers, as fragments of mma.sync; they are not to be touched either until the wait. n: 64 or 128.
// transposed: b is [16, n] in memory, named by a transposed_descriptor().
template <int n, bool transposed>
CRIA_DEVICE void wgmma_64xnx16(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b CRIA_AT) {
  static_assert(n == 64 || n == 128);
#ifdef CRIA_ON_GPU
#ifdef CRIA_WGMMA_ON_GPU
  if constexpr (n == 64 && !transposed) CRIA_WGMMA_A(64, CRIA_N32, 32, 33, 34, 35, 36, 0, CRIA_D32(0));
  if constexpr (n == 64 && transposed) CRIA_WGMMA_A(64, CRIA_N32, 32, 33, 34, 35, 36, 1, CRIA_D32(0));
  if constexpr (n == 128 && !transposed) CRIA_WGMMA_A(128, CRIA_N64, 64, 65, 66, 67, 68, 0, CRIA_D64(0));
  if constexpr (n == 128 && transposed) CRIA_WGMMA_A(128, CRIA_N64, 64, 65, 66, 67, 68, 1, CRIA_D64(0));
#endif
#else
  wgmma(n, {d, a, 0, b}, transposed, site);
#endif
}

}  // namespace cria::CRIA_MACHINE
