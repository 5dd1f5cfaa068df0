// fuse.h - neighbours that one kernel does together: RMSNorm before a linear, SwiGLU or rope + append after it. Every
// rounding of the single ops stays, so the bits are theirs; with many tokens, where a kernel of their own is faster,
// the device still runs them apart.
#pragma once
#include "recording.h"

namespace cria {

struct Fused {
  Recording recording;
  std::vector<int> results;  // the values that results are now
};

// A kernel that does two rows of a weight together takes eight of each, in turn.
inline bool pairs_of_rows(const Swiglu& op) { return op.y.dims[1] % 8 == 0; }
inline bool pairs_of_rows(const RopeAppend& op) { return op.head_dim() == 64 || op.head_dim() == 128; }

inline Fused fuse(const Recording& from, const std::vector<int>& results) {
  const std::vector<Command>& all = from.commands();
  std::vector<int> uses(from.values().size()), moved(from.values().size(), -1);
  for (const int r : results) uses[size_t(r)]++;
  for (Command command : all)
    std::visit(
        [&](auto& op) {
          each_tensor(op, [&](Tensor& t, bool is_output) {
            if (!is_output && t.value >= 0) uses[size_t(t.value)]++;
          });
        },
        command);
  // Whether what `y` holds is for `x`, an input of the next command, alone.
  const auto only_for = [&](const Tensor& y, const Tensor& x) {
    return x.value == y.value && uses[size_t(y.value)] == 1;
  };

  Fused to{Recording(from.activation()), results};
  for (size_t i = 0; i < all.size(); i++) {
    Command command = all[i];
    const auto next = [&]() -> const Command* { return i + 1 < all.size() ? &all[i + 1] : nullptr; };
    if (const auto* norm = std::get_if<RmsNorm>(&all[i])) {
      const auto* linear = std::get_if<Linear>(next());
      if (linear && only_for(norm->y, linear->x)) {
        Linear both = *linear;
        both.x = norm->x;
        both.norm = norm->weight;
        both.eps = norm->eps;
        command = both;
        i++;
      }
    }
    if (auto* linear = std::get_if<Linear>(&command); linear && !linear->add && !linear->f32) {
      if (const auto* swiglu = std::get_if<Swiglu>(next());
          swiglu && only_for(linear->y, swiglu->gateUp) && pairs_of_rows(*swiglu)) {
        linear->then = Linear::Then::swiglu;
        linear->y = swiglu->y;
        i++;
      } else if (const auto* rope = std::get_if<RopeAppend>(next());
                 rope && only_for(linear->y, rope->qkv) && pairs_of_rows(*rope)) {
        linear->then = Linear::Then::rope;
        linear->rope = *rope;
        linear->y = rope->q;
        i++;
      }
    }
    std::visit(
        [&](auto& op) {
          std::vector<int> before;
          each_tensor(op, [&](Tensor& t, bool is_output) {
            if (is_output)
              before.push_back(t.value);
            else if (t.value >= 0)
              t.value = moved[size_t(t.value)];
          });
          to.recording.add(op);
          size_t k = 0;
          each_tensor(op, [&](Tensor& t, bool is_output) {
            if (is_output) moved[size_t(before[k++])] = t.value;
          });
        },
        command);
  }
  for (int& r : to.results) r = moved[size_t(r)];
  return to;
}

}  // namespace cria
