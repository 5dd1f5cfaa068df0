// rope_append.cu - a block per token: rotates q and k in float32, rounds once, stores k and v in their slot.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "rope_append.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) rope_append_kernel(Rope op, const bf16* qkv, Live live) {
  CRIA_SHARED(float, angles);  // [2][dim / 2]: cosines, sines
  grid_launch_dependents();
  grid_wait();
  const int64_t row = blockIdx.x;
  const int half = op.dim / 2, heads = op.heads + 2 * op.kv_heads;
  const bool alive = guard(is_live(live, row));
  if (!alive) return;
  for (int d = int(threadIdx.x); d < half; d += kThreads) op.angle(row, d, angles[d], angles[half + d]);
  sync_block();
  const bf16* x = qkv + row * heads * op.dim;
  for (int i = int(threadIdx.x); i < heads * half; i += kThreads) {
    const int head = i / half, d = i % half;
    op.put(row, head, d, x[head * op.dim + d], x[head * op.dim + half + d], angles[d], angles[half + d]);
  }
}

}  // namespace

size_t workspace(const RopeAppend&, const Chip&) { return 0; }
void supports(const RopeAppend& op) { multiple_of_8(RopeAppend::name, "headDim", op.head_dim()); }

void run(const RopeAppend& op, const Gpu& gpu) {
  const Shape shape{dim3(unsigned(op.qkv.dims[0])), dim3(kThreads), size_t(op.head_dim()) * sizeof(float), 1,
                    gpu.dependent()};
  launch(rope_append_kernel, RopeAppend::name, shape, gpu.stream, Rope(op, op.q.as<bf16>(), op.heads()),
         op.qkv.as<const bf16>(), live_of(op.qkv));
}

}  // namespace cria::CRIA_MACHINE
