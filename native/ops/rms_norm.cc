// rms_norm.cc - two passes over a row that lies in cache: the sum of squares, then the product.
#include "rms_norm.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

template <class T>
void norm_row(T* y, const float* x, const bf16* weight, int64_t dim, float eps) {
  vf sum[4] = {};  // independent, to cover the latency of FMA
  int64_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const vf v = load(x + d + i * kLanes);
      sum[i] = fma(v, v, sum[i]);
    }
  for (; d < dim; d += kLanes) {
    const vf v = d + kLanes <= dim ? load(x + d) : load_part(x + d, dim - d);
    sum[0] = fma(v, v, sum[0]);
  }
  const f4 sums = hsum4(sum[0], sum[1], sum[2], sum[3]);
  const float mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / float(dim);
  const vf scale = splat(1.0f / __builtin_sqrtf(mean + eps));
  d = 0;
  for (; d + kLanes <= dim; d += kLanes) store(y + d, load(x + d) * scale * load(weight + d));
  if (d < dim) store_part(y + d, load_part(x + d, dim - d) * scale * load_part(weight + d, dim - d), dim - d);
}

}  // namespace

size_t workspace(const RmsNorm&, int) { return 0; }

void run(const RmsNorm& op, Worker& w) {
  const int64_t dim = op.x.dims[1], rows = live_rows(op.x);
  const bf16* weight = op.weight.blocks[0].data;
  for (int64_t begin, end; w.take(begin, end, rows);)
    for (int64_t t = begin; t < end; t++) {
      const float* x = static_cast<const float*>(op.x.data) + t * dim;
      if (op.y.dtype == DType::bf16)
        norm_row(static_cast<bf16*>(op.y.data) + t * dim, x, weight, dim, op.eps);
      else
        norm_row(static_cast<float*>(op.y.data) + t * dim, x, weight, dim, op.eps);
    }
}

}  // namespace cria::CRIA_ISA
