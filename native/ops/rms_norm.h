// rms_norm.h - y = x / sqrt(mean(x^2) + eps) * weight, over the last axis.
#pragma once
#include "../core/contract.h"

namespace cria {

struct RmsNorm {
  static constexpr const char* name = "rmsNorm";
  Tensor x;       // [tokens, dim] f32
  Weight weight;  // [dim]
  float eps = 0;
  Tensor y;  // [tokens, dim] activation; one rounding, after the product with weight

  template <class V>
  void contract(V& c) {
    c.in("x", x, DType::f32, {"tokens", "dim"});
    c.weight("weight", weight, {"dim"});
    c.out("y", y, c.activation(), {"tokens", "dim"}, &x.rows);
  }
  Cost cost() const { return {traffic(*this), 4.0 * double(x.count())}; }
};

}  // namespace cria
