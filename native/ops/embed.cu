// embed.cu - a block copies a row and widens it.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/vectors.h"
#include "embed.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    embed_kernel(float* x, const bf16* table, const int32_t* tokens, const int32_t* source, const int32_t* previous,
                 int64_t previous_count, Live live, int64_t vocab, int64_t dim) {
  grid_launch_dependents();
  grid_wait();
  const int64_t row = blockIdx.x;
  const bool alive = guard(is_live(live, row));
  if (!alive) return;
  const int64_t from = source[row];
  int64_t id = tokens[row];
  if (from >= 0) id = guard(from < previous_count) && previous ? previous[from] : -1;
  const bool known = guard(id >= 0 && id < vocab);
  for (int64_t d = int64_t{threadIdx.x} * 8; d < dim; d += kThreads * 8) {
    F32x4 y[2];
    if (known) {
      const auto v = load<Bf16x8>(table + id * dim + d);
      for (int i = 0; i < 8; i++) y[i / 4].at[i % 4] = float(v.at[i]);
    } else {
      for (int i = 0; i < 8; i++) y[i / 4].at[i % 4] = __builtin_nanf("");
    }
    store(x + row * dim + d, y[0]);
    store(x + row * dim + d + 4, y[1]);
  }
}

}  // namespace

size_t workspace(const Embed&, const Chip&) { return 0; }
void supports(const Embed& op) { multiple_of_8(Embed::name, "dim", op.table.cols); }

void run(const Embed& op, const Gpu& gpu) {
  const Shape shape{dim3(unsigned(op.x.dims[0])), dim3(kThreads), 0, 1, gpu.dependent()};
  launch(embed_kernel, Embed::name, shape, gpu.stream, op.x.as<float>(), op.table.blocks[0].data,
         op.tokens.as<const int32_t>(), op.source.as<const int32_t>(), op.previous.as<const int32_t>(),
         op.previous ? op.previous.dims[0] : int64_t{0}, live_of(op.x), op.table.rows, op.table.cols);
}

}  // namespace cria::CRIA_MACHINE
