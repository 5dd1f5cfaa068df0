// embed.h - rows of the embedding table: token ids in, the float32 residual stream out.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Embed {
  static constexpr const char* name = "embed";
  Weight table;       // [vocab, dim]
  Tensor tokens;      // [tokens]    ids given by the host
  Tensor source;      // [tokens]    row of `previous` to take the id from instead, or -1
  Tensor previous;    // [previous]  optional: ids sampled by the step before
  Tensor queryStart;  // [starts]    its last entry is the number of live rows
  Tensor x;           // [tokens, dim] f32. An id outside the vocabulary gives a row of NaN, which fails that row alone.

  template <class V>
  void contract(V& c) {
    c.in("step.tokens", tokens, DType::i32, {"tokens"});
    c.in("step.source", source, DType::i32, {"tokens"});
    c.optional("step.previous", previous, DType::i32, {"previous"});
    c.in("step.queryStart", queryStart, DType::i32, {"starts"});
    c.weight("table", table, {"vocab", "dim"});
    const Rows live{Rows::Kind::last, queryStart.as<const int32_t>(), queryStart.dims[0]};
    c.out("x", x, DType::f32, {"tokens", "dim"}, &live);
  }
  Cost cost() const { return {double(tokens.dims[0]) * (double(table.cols) * (2 + 4) + 8), 0}; }
};

}  // namespace cria
