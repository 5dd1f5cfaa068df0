// swiglu.cu - eight elements a thread.
#include "../machine/gpu.h"
#include "../machine/ptx/grid.h"
#include "../machine/tile/vectors.h"
#include "swiglu.cuh"
#include "swiglu.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) swiglu_kernel(bf16* y, const bf16* gate_up, Live live, int64_t hidden) {
  grid_launch_dependents();
  grid_wait();
  const int64_t row = blockIdx.y, d = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  const bool alive = guard(is_live(live, row));
  if (!alive) return;
  const bool exists = guard(d < hidden);
  if (!exists) return;
  const auto gate = load<Bf16x8>(gate_up + row * 2 * hidden + d);
  const auto up = load<Bf16x8>(gate_up + (row * 2 + 1) * hidden + d);
  Bf16x8 out;
  for (int i = 0; i < 8; i++) out.at[i] = silu_times(gate.at[i], up.at[i]);
  store(y + row * hidden + d, out);
}

}  // namespace

size_t workspace(const Swiglu&, const Chip&) { return 0; }
void supports(const Swiglu& op) { multiple_of_8(Swiglu::name, "hidden", op.y.dims[1]); }

void run(const Swiglu& op, const Gpu& gpu) {
  const int64_t rows = op.y.dims[0], hidden = op.y.dims[1];
  const Shape shape{dim3(unsigned((hidden / 8 + kThreads - 1) / kThreads), unsigned(rows)), dim3(kThreads), 0, 1,
                    gpu.dependent()};
  launch(swiglu_kernel, Swiglu::name, shape, gpu.stream, op.y.as<bf16>(), op.gateUp.as<const bf16>(),
         live_of(op.gateUp), hidden);
}

}  // namespace cria::CRIA_MACHINE
