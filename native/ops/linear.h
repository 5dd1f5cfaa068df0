// linear.h - y = x W^T, in float32 with the residual added, or with logits left in float32.
//
// fuse.h makes more of it: the op before becomes part of it (norm), or the op after (then), with their roundings.
#pragma once
#include "../core/contract.h"
#include "rope_append.h"

namespace cria {

struct Linear {
  static constexpr const char* name = "linear";
  enum class Then : uint8_t { nothing, swiglu, rope };
  Tensor x;          // [tokens, in]   activation; f32 with norm
  Weight weight;     // [out, in]      bf16, in row blocks
  Tensor add;        // [tokens, out]  f32, optional: y = add + x W^T
  bool f32 = false;  // y stays float32 (always with add)
  Weight norm;       // [in]           optional: x is normalised first, as rmsNorm does
  float eps = 0;
  Then then = Then::nothing;
  RopeAppend rope;  // of Then::rope: all but its qkv and q
  Tensor y;         // [tokens, out]  activation, or f32; swiglu: [tokens, hidden]; rope: [tokens, heads, headDim]

  template <class V>
  void contract(V& c) {
    c.in("x", x, norm.rank ? DType::f32 : c.activation(), {"tokens", "in"});
    if (norm.rank) c.weight("norm", norm, {"in"});
    c.weight("weight", weight, {"out", "in"});
    c.optional("add", add, DType::f32, {"tokens", "out"});
    if (then == Then::swiglu) {
      c.derive("hidden", weight.rows / 2, "2 hidden is even", weight.rows % 2 == 0);
      c.out("y", y, c.activation(), {"tokens", "hidden"}, &x.rows);
    } else if (then == Then::rope) {
      rope.append(c, weight.rows, y, &x.rows);
    } else {
      c.out("y", y, f32 || add ? DType::f32 : c.activation(), {"tokens", "out"}, &x.rows);
    }
  }
  Cost cost() const {
    const double tokens = double(x.dims[0]), width = double(size_of(y.dtype));
    const double kv = then == Then::rope ? 2 * tokens * double(rope.kv_heads() * rope.head_dim()) * width : 0;
    return {traffic(*this) + kv, 2.0 * tokens * double(weight.rows) * double(weight.cols)};
  }
};

}  // namespace cria
