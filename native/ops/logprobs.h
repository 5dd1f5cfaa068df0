// logprobs.h - log softmax(logits) of one token a row and of the 20 most probable ones.
//
// A row with NaN or +infinity, or with nothing but -infinity, gives NaN and ids -1.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Logprobs {
  static constexpr const char* name = "logprobs";
  static constexpr int kTop = 20;
  Tensor logits;   // [out, vocab] f32
  Tensor sampled;  // [out]
  Tensor given;    // [out]        the id to look up instead, or -1
  Tensor chosen;   // [out]        of that id, NaN if it is outside the vocabulary
  Tensor topIds;   // [out, 20]    the most probable first, the lowest id among equals; -1 beyond the vocabulary
  Tensor top;      // [out, 20]    theirs, -infinity beyond the vocabulary

  template <class V>
  void contract(V& c) {
    c.in("logits", logits, DType::f32, {"out", "vocab"});
    c.in("sampled", sampled, DType::i32, {"out"});
    c.in("given", given, DType::i32, {"out"});
    c.derive("top", kTop, "top = 20", true);
    c.out("chosen", chosen, DType::f32, {"out"}, &logits.rows);
    c.out("topIds", topIds, DType::i32, {"out", "top"}, &logits.rows);
    c.out("top", top, DType::f32, {"out", "top"}, &logits.rows);
  }
  Cost cost() const { return {traffic(*this), 2.0 * double(logits.count())}; }
};

}  // namespace cria
