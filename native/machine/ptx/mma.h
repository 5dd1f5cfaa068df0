// ptx/mma.h - tensor cores by the warp: mma.sync, and ldmatrix / stmatrix that feed it. PTX ISA 9.7.14.
//
// Fragments, lane l with g = l / 4 and t = l % 4 (each register holds two bf16, the lower column first):
//   A [16, 16]: a0 (g, 2t) a1 (g + 8, 2t) a2 (g, 2t + 8) a3 (g + 8, 2t + 8)
//   B [16, 8]:  b0 (2t, g) b1 (2t + 8, g), rows are k
//   D [16, 8]:  d0 (g, 2t) d1 (g, 2t + 1) d2 (g + 8, 2t) d3 (g + 8, 2t + 1)
#pragma once
#include "arithmetic.h"

namespace cria::CRIA_MACHINE {

// d[16, 8] += a[16, 16] b[16, 8], bf16 products, float32 sums.
CRIA_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] CRIA_AT) {
#ifdef CRIA_ON_GPU
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  struct Operands {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  collective(kAllLanes, mine, "mma.sync", site, [](Operands* const* lanes) {
    float x[16][16], y[8][16], sum[16][8];
    for (unsigned l = 0; l < 32; l++) {
      const unsigned g = l / 4, t = l % 4;
      for (unsigned i = 0; i < 4; i++) {
        const unsigned row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
        x[row][k] = low_half(lanes[l]->a[i]);
        x[row][k + 1] = high_half(lanes[l]->a[i]);
        sum[row - i % 2 * 8 + i / 2 * 8][2 * t + i % 2] = lanes[l]->d[i];
      }
      for (unsigned i = 0; i < 2; i++) {
        y[g][2 * t + i * 8] = low_half(lanes[l]->b[i]);
        y[g][2 * t + i * 8 + 1] = high_half(lanes[l]->b[i]);
      }
    }
    for (unsigned row = 0; row < 16; row++)
      for (unsigned col = 0; col < 8; col++) {
        float s = sum[row][col];  // the hardware's order and rounding of these 16 products are its own
        for (unsigned k = 0; k < 16; k++) s += x[row][k] * y[col][k];
        sum[row][col] = s;
      }
    for (unsigned l = 0; l < 32; l++)
      for (unsigned i = 0; i < 4; i++) lanes[l]->d[i] = sum[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
  });
#endif
}

// Four 8 x 8 tiles of bf16 from shared memory. Lane l gives the address of row l % 8 of tile l / 8, 16-byte aligned,
// and gets of every tile row l / 4, columns 2 (l % 4) and the next; transposed: column l / 4, rows 2 (l % 4) and the
// next.
template <bool transposed = false>
CRIA_DEVICE void ldmatrix(uint32_t (&r)[4], const bf16* row CRIA_AT) {
#ifdef CRIA_ON_GPU
  const auto at = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#else
  if (reinterpret_cast<uintptr_t>(row) % 16) misuse("ldmatrix: the address of a row is not a multiple of 16", site);
  struct Operands {
    const bf16* row;
    uint32_t* r;
  } mine{row, r};
  collective(kAllLanes, mine, "ldmatrix", site, [](Operands* const* lanes) {
    for (unsigned l = 0; l < 32; l++)
      for (unsigned i = 0; i < 4; i++) {
        const unsigned g = l / 4, t = 2 * (l % 4);
        const bf16 a = transposed ? lanes[8 * i + t]->row[g] : lanes[8 * i + g]->row[t];
        const bf16 b = transposed ? lanes[8 * i + t + 1]->row[g] : lanes[8 * i + g]->row[t + 1];
        lanes[l]->r[i] = uint32_t(a.bits) | uint32_t(b.bits) << 16;
      }
  });
#endif
}

// The other way: four 8 x 8 tiles into shared memory, fragments as ldmatrix gives them. sm_90 on.
CRIA_DEVICE void stmatrix(bf16* row, const uint32_t (&r)[4] CRIA_AT) {
#ifdef CRIA_ON_GPU
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(uint32_t(__cvta_generic_to_shared(row))),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
#else
  if (reinterpret_cast<uintptr_t>(row) % 16) misuse("stmatrix: the address of a row is not a multiple of 16", site);
  struct Operands {
    bf16* row;
    const uint32_t* r;
  } mine{row, r};
  collective(kAllLanes, mine, "stmatrix", site, [](Operands* const* lanes) {
    for (unsigned l = 0; l < 32; l++)
      for (unsigned i = 0; i < 4; i++) std::memcpy(lanes[8 * i + l / 4]->row + 2 * (l % 4), &lanes[l]->r[i], 4);
  });
#endif
}

}  // namespace cria::CRIA_MACHINE
