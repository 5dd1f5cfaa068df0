// rope_append.cu - a block per token: rotates q and k in float32, rounds once, stores k and v in their slot.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "rope_append.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 256;

struct Rope {
  bf16 *q, *k, *v;
  const bf16* qkv;
  const int32_t *positions, *slots;
  const float* inv_freq;
  int64_t heads, kv_heads, page_size, dim, all_slots;
};

__global__ void __launch_bounds__(kThreads) rope_append_kernel(Rope op, Live live) {
  CRIA_SHARED(float, angles);  // [2][dim / 2]: cosines, sines
  grid_wait();
  const int64_t row = blockIdx.x, half = op.dim / 2;
  if (!is_live(live, row)) return;
  const auto position = float(op.positions[row]);
  for (int64_t i = threadIdx.x; i < half; i += kThreads) {
    const float angle = position * op.inv_freq[i];
    sincosf(angle, angles + half + i, angles + i);
  }
  sync_block();

  const int64_t slot = op.slots[row];
  const bool kept = guard(slot >= 0 && slot < op.all_slots);
  // Where head 0 of this token lies in the cache [pages, kvHeads, pageSize, headDim].
  const int64_t at = (slot / op.page_size * op.kv_heads * op.page_size + slot % op.page_size) * op.dim;
  const bf16* x = op.qkv + row * (op.heads + 2 * op.kv_heads) * op.dim;
  for (int64_t i = threadIdx.x; i < (op.heads + op.kv_heads) * half; i += kThreads) {
    const int64_t head = i / half, d = i % half;
    const float a = float(x[head * op.dim + d]), b = float(x[head * op.dim + half + d]);
    const float c = angles[d], s = angles[half + d];
    const int64_t kv = head - op.heads;
    if (kv >= 0 && !kept) continue;
    bf16* y = kv < 0 ? op.q + (row * op.heads + head) * op.dim : op.k + at + kv * op.page_size * op.dim;
    y[d] = bf16(a * c - b * s);
    y[half + d] = bf16(b * c + a * s);
  }
  if (!kept) return;
  const bf16* values = x + (op.heads + op.kv_heads) * op.dim;
  for (int64_t i = threadIdx.x; i < op.kv_heads * op.dim; i += kThreads)
    op.v[at + i / op.dim * op.page_size * op.dim + i % op.dim] = values[i];
}

}  // namespace

size_t workspace(const RopeAppend&, const Chip&) { return 0; }
void supports(const RopeAppend& op) { multiple_of_8(RopeAppend::name, "headDim", op.head_dim()); }

void run(const RopeAppend& op, const Gpu& gpu) {
  const Rope rope{op.q.as<bf16>(),
                  op.k.as<bf16>(),
                  op.v.as<bf16>(),
                  op.qkv.as<const bf16>(),
                  op.positions.as<const int32_t>(),
                  op.slots.as<const int32_t>(),
                  op.invFreq.as<const float>(),
                  op.heads(),
                  op.kv_heads(),
                  op.page_size(),
                  op.head_dim(),
                  op.k.dims[0] * op.page_size()};
  const Shape shape{dim3(unsigned(op.qkv.dims[0])), dim3(kThreads), size_t(op.head_dim()) * sizeof(float), 1,
                    gpu.dependent()};
  launch(rope_append_kernel, RopeAppend::name, shape, gpu.stream, rope, live_of(op.qkv));
}

}  // namespace cria::CRIA_MACHINE
