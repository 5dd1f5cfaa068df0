// adjust.h - the logits after what each request asks for, before temperature: a mask of the tokens that are allowed, a
// bias of single tokens, penalties of those that were seen.
//
// In this order: a token that the mask leaves out becomes -infinity; the bias is added; a token that was seen gets
// l > 0 ? l / repetition : l * repetition, then l - frequency count, then l - presence where count > 0. Every operation
// is rounded on its own.
#pragma once
#include "../core/contract.h"

namespace cria {

struct Adjust {
  static constexpr const char* name = "adjust";
  Tensor logits;      // [out, vocab] f32
  Tensor start, end;  // [out]    row i has the edits start[i] .. end[i] - 1, of those that there are
  Tensor ids;         // [edits]      each once in a row; outside the vocabulary: ignored
  Tensor bias;        // [edits]
  Tensor count;       // [edits]      how often it was generated; 0: seen in the prompt only, -1: never seen
  Tensor repetition, frequency, presence;  // [out]  1, 0, 0 = off
  Tensor newest;    // [out]          row of `previous` with an id that counts once more than its edit says, or -1
  Tensor previous;  // [previous]     optional
  Tensor maskRow;   // [out]          row of `masks`, or -1: every token; outside of `masks`: none
  Tensor masks;     // [masks, words] optional; bit id % 32 of word id / 32: allowed
  Tensor y;         // [out, vocab] f32

  template <class V>
  void contract(V& c) {
    c.in("logits", logits, DType::f32, {"out", "vocab"});
    c.in("edits.start", start, DType::i32, {"out"});
    c.in("edits.end", end, DType::i32, {"out"});
    c.in("edits.ids", ids, DType::i32, {"edits"});
    c.in("edits.bias", bias, DType::f32, {"edits"});
    c.in("edits.count", count, DType::i32, {"edits"});
    c.in("edits.repetition", repetition, DType::f32, {"out"});
    c.in("edits.frequency", frequency, DType::f32, {"out"});
    c.in("edits.presence", presence, DType::f32, {"out"});
    c.in("edits.newest", newest, DType::i32, {"out"});
    c.optional("edits.previous", previous, DType::i32, {"previous"});
    c.in("edits.maskRow", maskRow, DType::i32, {"out"});
    c.derive("words", (logits.dims[1] + 31) / 32, "words = vocab / 32, rounded up", true);
    c.optional("edits.masks", masks, masks.dtype == DType::u32 ? DType::u32 : DType::i32, {"masks", "words"});
    c.out("y", y, DType::f32, {"out", "vocab"}, &logits.rows);
  }
  Cost cost() const { return {traffic(*this), 0}; }
};

}  // namespace cria
