// rms_norm.cuh - the arithmetic of one row, for rms_norm.cu and for linears that begin with it.
//
// The sum of squares has one order whoever computes it: kNormThreads threads take four elements in turn, lanes are
// added as a tree and warps in their order.
#pragma once
#include "../machine/tile/reduce.h"
#include "../machine/tile/vectors.h"

namespace cria::CRIA_MACHINE {

constexpr int kNormThreads = 256, kNormWarps = kNormThreads / 32;

// The squares of a row [dim], summed over the elements of this warp.
CRIA_DEVICE float sum_of_squares(const float* x, int64_t dim) {
  float sum = 0;
  for (int64_t d = int64_t{threadIdx.x} * 4; d < dim; d += kNormThreads * 4) {
    const auto v = load<F32x4>(x + d);
    for (int i = 0; i < 4; i++) sum = fused(v.at[i], v.at[i], sum);
  }
  return reduce_warp(sum, Sum{});
}

// 1 / sqrt(mean + eps) from the sums of all warps.
CRIA_DEVICE float norm_scale(const float* sums, int64_t dim, float eps) {
  float sum = sums[0];
  for (int w = 1; w < kNormWarps; w++) sum += sums[w];
  return 1.0f / sqrtf(sum / float(dim) + eps);
}

// Four elements of y, from column d on.
CRIA_DEVICE Pack<bf16, 4> normed(const float* x, const bf16* weight, int64_t d, float scale) {
  const auto v = load<F32x4>(x + d);
  const auto w = load<Pack<bf16, 4>>(weight + d);
  Pack<bf16, 4> y;
  for (int i = 0; i < 4; i++) y.at[i] = bf16(v.at[i] * scale * float(w.at[i]));
  return y;
}

}  // namespace cria::CRIA_MACHINE
