// swiglu.h - y = silu(gate) * up, where gateUp holds gate in its first half of columns and up in the second.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Swiglu {
  static constexpr const char* name = "swiglu";
  Tensor gateUp;  // [tokens, 2 hidden] activation
  Tensor y;       // [tokens, hidden]   activation

  template <class V>
  void contract(V& c) {
    c.in("gateUp", gateUp, c.activation(), {"tokens", "2 hidden"});
    c.derive("hidden", gateUp.dims[1] / 2, "2 hidden is even", gateUp.dims[1] % 2 == 0);
    c.out("y", y, c.activation(), {"tokens", "hidden"}, &gateUp.rows);
  }
  Cost cost() const { return {traffic(*this), 5.0 * double(y.count())}; }
};

}  // namespace cria
