// rms_norm.cu - a block per row: the sum of squares, then the products. The second look at the row comes from L1.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/reduce.h"
#include "../machine/tile/vectors.h"
#include "rms_norm.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(bf16* y, const float* x, const bf16* weight, Live live, int64_t dim, float eps) {
  CRIA_SHARED(float, partial);  // [warps]
  grid_wait();
  const int64_t row = blockIdx.x;
  if (!is_live(live, row)) return;
  x += row * dim;
  y += row * dim;

  float sum = 0;
  for (int64_t d = int64_t{threadIdx.x} * 4; d < dim; d += kThreads * 4) {
    const auto v = load<F32x4>(x + d);
    for (int i = 0; i < 4; i++) sum = fused(v.at[i], v.at[i], sum);
  }
  sum = reduce_block(sum, Sum{}, partial);
  const float scale = 1.0f / sqrtf(sum / float(dim) + eps);

  for (int64_t d = int64_t{threadIdx.x} * 4; d < dim; d += kThreads * 4) {
    const auto v = load<F32x4>(x + d);
    const auto w = load<Pack<bf16, 4>>(weight + d);
    Pack<bf16, 4> out;
    for (int i = 0; i < 4; i++) out.at[i] = bf16(v.at[i] * scale * float(w.at[i]));
    store(y + d, out);
  }
}

}  // namespace

size_t workspace(const RmsNorm&, const Chip&) { return 0; }
void supports(const RmsNorm& op) { multiple_of_8(RmsNorm::name, "dim", op.x.dims[1]); }

void run(const RmsNorm& op, const Gpu& gpu) {
  const Shape shape{dim3(unsigned(op.x.dims[0])), dim3(kThreads), kThreads / 32 * sizeof(float), 1, gpu.dependent()};
  launch(rms_norm_kernel, RmsNorm::name, shape, gpu.stream, op.y.as<bf16>(), op.x.as<const float>(),
         op.weight.blocks[0].data, live_of(op.x), op.x.dims[1], op.eps);
}

}  // namespace cria::CRIA_MACHINE
