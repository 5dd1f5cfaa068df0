// select_rows.h - the rows that go through the head: the last of each sequence, or all of them for evaluation.
#pragma once
#include "../core/contract.h"

namespace cria {

struct SelectRows {
  static constexpr const char* name = "selectRows";
  Tensor x;        // [tokens, dim] f32
  Tensor outputs;  // [out]         row numbers; from the first -1 on, rows are dead
  Tensor y;        // [out, dim]    f32

  template <class V>
  void contract(V& c) {
    c.in("x", x, DType::f32, {"tokens", "dim"});
    c.in("step.outputs", outputs, DType::i32, {"out"});
    const Rows live{Rows::Kind::present, outputs.as<const int32_t>(), outputs.dims[0]};
    c.out("y", y, DType::f32, {"out", "dim"}, &live);
  }
  Cost cost() const { return {2.0 * double(y.bytes()) + double(outputs.bytes()), 0}; }
};

}  // namespace cria
