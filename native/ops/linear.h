// linear.h - y = x W^T, in float32 with the residual added, or with logits left in float32.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Linear {
  static constexpr const char* name = "linear";
  Tensor x;          // [tokens, in]   activation
  Weight weight;     // [out, in]      bf16, in row blocks
  Tensor add;        // [tokens, out]  f32, optional: y = add + x W^T
  bool f32 = false;  // y stays float32 (always with add)
  Tensor y;          // [tokens, out]  activation, or f32

  template <class V>
  void contract(V& c) {
    c.in("x", x, c.activation(), {"tokens", "in"});
    c.weight("weight", weight, {"out", "in"});
    c.optional("add", add, DType::f32, {"tokens", "out"});
    c.out("y", y, f32 || add ? DType::f32 : c.activation(), {"tokens", "out"}, &x.rows);
  }
  Cost cost() const { return {traffic(*this), 2.0 * double(x.dims[0]) * double(weight.rows) * double(weight.cols)}; }
};

}  // namespace cria
