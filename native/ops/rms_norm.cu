// rms_norm.cu - a block per row: the sum of squares, then the products. The second look at the row comes from L1.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "rms_norm.cuh"
#include "rms_norm.h"

namespace cria::CRIA_MACHINE {
namespace {

__global__ void __launch_bounds__(kNormThreads)
    rms_norm_kernel(bf16* y, const float* x, const bf16* weight, Live live, int64_t dim, float eps) {
  CRIA_SHARED(float, sums);  // [warps]
  grid_launch_dependents();
  grid_wait();
  const int64_t row = blockIdx.x;
  const bool alive = guard(is_live(live, row));
  if (!alive) return;
  x += row * dim;
  y += row * dim;

  const float sum = sum_of_squares(x, dim);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  sync_block();
  const float scale = norm_scale(sums, dim, eps);
  for (int64_t d = int64_t{threadIdx.x} * 4; d < dim; d += kNormThreads * 4) store(y + d, normed(x, weight, d, scale));
}

}  // namespace

size_t workspace(const RmsNorm&, const Chip&) { return 0; }
void supports(const RmsNorm& op) { multiple_of_8(RmsNorm::name, "dim", op.x.dims[1]); }

void run(const RmsNorm& op, const Gpu& gpu) {
  const Shape shape{dim3(unsigned(op.x.dims[0])), dim3(kNormThreads), kNormWarps * sizeof(float), 1, gpu.dependent()};
  launch(rms_norm_kernel, RmsNorm::name, shape, gpu.stream, op.y.as<bf16>(), op.x.as<const float>(),
         op.weight.blocks[0].data, live_of(op.x), op.x.dims[1], op.eps);
}

}  // namespace cria::CRIA_MACHINE
