// select_rows.cu - a block copies a row. A row number outside of x gives a row of NaN.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/vectors.h"
#include "select_rows.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    select_rows_kernel(float* y, const float* x, const int32_t* outputs, Live live, int64_t rows, int64_t dim) {
  grid_launch_dependents();
  grid_wait();
  const int64_t row = blockIdx.x;
  const bool alive = guard(is_live(live, row));
  if (!alive) return;
  const int64_t from = outputs[row];
  const bool known = guard(from < rows);
  for (int64_t d = int64_t{threadIdx.x} * 4; d < dim; d += kThreads * 4) {
    F32x4 v;
    if (known)
      v = load<F32x4>(x + from * dim + d);
    else
      for (float& f : v.at) f = __builtin_nanf("");
    store(y + row * dim + d, v);
  }
}

}  // namespace

size_t workspace(const SelectRows&, const Chip&) { return 0; }
void supports(const SelectRows& op) { multiple_of_8(SelectRows::name, "dim", op.x.dims[1]); }

void run(const SelectRows& op, const Gpu& gpu) {
  const Shape shape{dim3(unsigned(op.y.dims[0])), dim3(kThreads), 0, 1, gpu.dependent()};
  launch(select_rows_kernel, SelectRows::name, shape, gpu.stream, op.y.as<float>(), op.x.as<const float>(),
         op.outputs.as<const int32_t>(), live_of(op.y), op.x.dims[0], op.x.dims[1]);
}

}  // namespace cria::CRIA_MACHINE
