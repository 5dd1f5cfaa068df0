// recording.h - the commands of one forward pass in order, checked, with the lifetimes of everything they write.
#pragma once
#include <vector>

#include "../core/arena.h"
#include "ops.h"

namespace cria {

class Recording {
 public:
  // activation: what the device keeps activations in: bf16, or f32 in its test mode.
  explicit Recording(DType activation) : activation_(activation) {}

  // Checks the op against its contract, gives its results their shapes and appends it. Throws, and then nothing
  // changed.
  template <class Op>
  void add(Op& op) {
    Check check(Op::name, activation_);
    op.contract(check);
    const int now = int(commands_.size());
    each_tensor(op, [&](Tensor& t, bool is_output) {
      if (is_output) {
        t.value = int(values_.size());
        values_.push_back({t.bytes(), now, now});
      } else if (t.value >= 0) {
        values_[size_t(t.value)].last = now;
      }
    });
    commands_.emplace_back(op);
  }

  const std::vector<Command>& commands() const { return commands_; }
  const std::vector<Lifetime>& values() const { return values_; }
  DType activation() const { return activation_; }

 private:
  DType activation_;
  std::vector<Command> commands_;
  std::vector<Lifetime> values_;
};

}  // namespace cria
