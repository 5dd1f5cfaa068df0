// attention.h - causal softmax(q k^T / sqrt(headDim)) v over each sequence's pages; grouped queries.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Attention {
  static constexpr const char* name = "attention";
  Tensor q;           // [tokens, heads, headDim]               activation
  Tensor k, v;        // [pages, kvHeads, pageSize, headDim]    activation
  Tensor queryStart;  // [seqs + 1]  first row of each sequence
  Tensor kvLength;    // [seqs]      keys visible to the last row of each sequence
  Tensor pageTable;   // [seqs, maxPages]  page ids, -1 = unused
  Tensor y;           // [tokens, heads * headDim]              activation

  template <class V>
  void contract(V& c) {
    c.in("q", q, c.activation(), {"tokens", "heads", "headDim"});
    c.state("kv.k", k, c.activation(), {"pages", "kvHeads", "pageSize", "headDim"});
    c.state("kv.v", v, c.activation(), {"pages", "kvHeads", "pageSize", "headDim"});
    c.in("step.queryStart", queryStart, DType::i32, {"seqs+1"});
    c.in("step.kvLength", kvLength, DType::i32, {"seqs"});
    c.in("step.pageTable", pageTable, DType::i32, {"seqs", "maxPages"});
    c.require(queryStart.dims[0] == kvLength.dims[0] + 1, "seqs+1 = seqs + 1");
    c.require(k.dims[1] > 0 && q.dims[1] % k.dims[1] == 0, "kvHeads divides heads");
    c.derive("width", q.dims[1] * q.dims[2], "width = heads headDim", true);
    c.out("y", y, c.activation(), {"tokens", "width"}, &q.rows);
  }
  int64_t heads() const { return q.dims[1]; }
  int64_t kv_heads() const { return k.dims[1]; }
  int64_t page_size() const { return k.dims[2]; }
  int64_t head_dim() const { return k.dims[3]; }
  // Lengths are known only when the command runs: q and y, and each row's own key and value.
  Cost cost() const {
    const double kv = 2.0 * double(q.dims[0] * k.dims[1] * k.dims[3]) * double(size_of(k.dtype));
    return {2.0 * double(q.bytes()) + kv, 4.0 * double(q.count())};
  }
};

}  // namespace cria
