// ops.h - the list of operations. Every table (commands, dispatch, binding, cost) is made from it.
#pragma once
#include <variant>

#include "adjust.h"
#include "attention.h"
#include "embed.h"
#include "linear.h"
#include "logprobs.h"
#include "rms_norm.h"
#include "rope_append.h"
#include "sample.h"
#include "select_rows.h"
#include "swiglu.h"

// X(struct): every op, in the order of a forward pass.
#define CRIA_OPS(X) \
  X(Embed) X(RmsNorm) X(Linear) X(RopeAppend) X(Attention) X(Swiglu) X(SelectRows) X(Adjust) X(Sample) X(Logprobs)

namespace cria {

// One op with its arguments, as plain data.
using Command =
    std::variant<Embed, RmsNorm, Linear, RopeAppend, Attention, Swiglu, SelectRows, Adjust, Sample, Logprobs>;

// What a command does, for people: "rmsNorm+linear+swiglu".
template <class Op>
std::string label(const Op& op) {
  return op.name;
}
inline std::string label(const Linear& op) {
  const std::string before = op.norm.rank ? "rmsNorm+" : "";
  const char* const after[] = {"", "+swiglu", "+ropeAppend"};
  return before + op.name + after[int(op.then)];
}

}  // namespace cria
