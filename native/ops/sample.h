// sample.h - one token per row of logits: argmax(logit / T + Gumbel(seed, position, id)) over the kept set.
//
// The kept set, in this order: the topK largest logits; of those the smallest set of most probable tokens whose
// probability (softmax of logit / T over what topK kept) reaches topP; of those the ones at least minP times as
// probable as the best. Tokens that tie with the last one kept are kept too. Temperature 0 takes the largest logit, the
// lowest id among equals. The draw depends on seed, position and id alone, never on what else is in the batch.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Sample {
  static constexpr const char* name = "sample";
  Tensor logits;       // [out, vocab]  f32
  Tensor temperature;  // [out]         0 = greedy
  Tensor topP;         // [out]         1 = off
  Tensor minP;         // [out]         0 = off
  Tensor topK;         // [out]         0 = off
  Tensor seed;         // [out, 2]      low and high word
  Tensor position;     // [out]
  Tensor sampled;  // [sampled]     optional, at least `out` long: the ids again, where the next step's embed reads them
  Tensor ids;      // [out]
  Tensor logprobs;  // [out]         log softmax(logits)[id], before temperature and truncation
  Tensor status;    // [out]         0, or 1: a logit was NaN or all were -infinity; the id is then 0

  template <class V>
  void contract(V& c) {
    c.in("logits", logits, DType::f32, {"out", "vocab"});
    c.in("sampling.temperature", temperature, DType::f32, {"out"});
    c.in("sampling.topP", topP, DType::f32, {"out"});
    c.in("sampling.minP", minP, DType::f32, {"out"});
    c.in("sampling.topK", topK, DType::i32, {"out"});
    c.in("sampling.seed", seed, DType::u32, {"out", "2"});
    c.in("sampling.position", position, DType::i32, {"out"});
    c.require(seed.dims[1] == 2, "2 = 2");
    c.optional("sampling.sampled", sampled, DType::i32, {"sampled"});
    c.require(!sampled || sampled.dims[0] >= logits.dims[0], "sampled >= out");
    c.out("ids", ids, DType::i32, {"out"}, &logits.rows);
    c.out("logprobs", logprobs, DType::f32, {"out"}, &logits.rows);
    c.out("status", status, DType::i32, {"out"}, &logits.rows);
  }
  Cost cost() const { return {traffic(*this), 5.0 * double(logits.count())}; }
};

}  // namespace cria
