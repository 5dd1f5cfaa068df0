// swiglu.cuh - the arithmetic of one element, for swiglu.cu and for linears that end with it.
#pragma once
#include "../machine/simt.h"

namespace cria::CRIA_MACHINE {

CRIA_DEVICE bf16 silu_times(bf16 gate, bf16 up) {
  const float g = float(gate);
  return bf16(g / (1.0f + expf(-g)) * float(up));
}

}  // namespace cria::CRIA_MACHINE
