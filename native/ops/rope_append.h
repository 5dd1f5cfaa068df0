// rope_append.h - rotates q and k by position (half-split pairs, as in the Hugging Face layout) and stores k, v in the
// cache.
#pragma once
#include "../core/contract.h"

namespace cria {

struct RopeAppend {
  static constexpr const char* name = "ropeAppend";
  Tensor qkv;        // [tokens, (heads + 2 kvHeads) headDim]  activation
  Tensor k, v;       // [pages, kvHeads, pageSize, headDim]    activation, updated
  Tensor positions;  // [tokens]
  Tensor slots;      // [tokens]   page * pageSize + offset; -1 writes nothing
  Tensor invFreq;    // [headDim / 2] f32: angle = position * invFreq
  Tensor q;          // [tokens, heads, headDim] activation

  template <class V>
  void contract(V& c) {
    c.in("qkv", qkv, c.activation(), {"tokens", "qkv"});
    append(c, qkv.dims[1], q, &qkv.rows);
  }
  // All but the input, whose width is `width`; a linear that ends with this op uses it, too.
  template <class V>
  void append(V& c, int64_t width, Tensor& rotated, const Rows* rows) {
    c.state("kv.k", k, c.activation(), {"pages", "kvHeads", "pageSize", "headDim"});
    c.state("kv.v", v, c.activation(), {"pages", "kvHeads", "pageSize", "headDim"});
    c.in("step.positions", positions, DType::i32, {"tokens"});
    c.in("step.slots", slots, DType::i32, {"tokens"});
    c.in("invFreq", invFreq, DType::f32, {"headDim/2"});
    const int64_t head = k.dims[3] > 0 ? k.dims[3] : 1, kvHeads = k.dims[1] > 0 ? k.dims[1] : 1;
    const int64_t heads = width / head - 2 * kvHeads;
    c.require(invFreq.dims[0] * 2 == head, "headDim/2 = headDim / 2");
    c.derive("heads", heads, "qkv = (heads + 2 kvHeads) headDim, and kvHeads divides heads",
             width % head == 0 && heads > 0 && heads % kvHeads == 0);
    c.out("q", rotated, c.activation(), {"tokens", "heads", "headDim"}, rows);
  }
  int64_t heads() const { return q.dims[1]; }
  int64_t kv_heads() const { return k.dims[1]; }
  int64_t page_size() const { return k.dims[2]; }
  int64_t head_dim() const { return k.dims[3]; }
  Cost cost() const {
    const double tokens = double(qkv.dims[0]), kv = double(k.dims[1] * k.dims[3]), width = double(size_of(qkv.dtype));
    return {traffic(*this) + 2 * tokens * kv * width, 3.0 * tokens * (double(q.dims[1] * q.dims[2]) + kv)};
  }
};

}  // namespace cria
