// contract.h - what an operation takes and gives, as data: named axes, element types, and the sentences of every error.
//
// An op is a struct of tensors with one `contract` function that lists them:
//
//   template <class V> void contract(V& c) {
//     c.in("x", x, DType::f32, {"tokens", "dim"});
//     c.weight("weight", weight, {"dim"});
//     c.out("y", y, c.activation(), {"tokens", "dim"});
//   }
//
// The same list checks arguments and shapes results (Check), fills in addresses once the arena is planned (each_tensor)
// and counts bytes (Traffic). An axis has the size it is first seen with; every later use must agree.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

#include "error.h"
#include "tensor.h"

namespace cria {

using Axes = std::initializer_list<const char*>;

// Checks inputs against their axes and gives results their shapes. Throws ERR_SHAPE or ERR_DTYPE.
class Check {
 public:
  // activation: bf16, or f32 on a device in its float32 test mode.
  Check(const char* op, DType activation) : op_(op), activation_(activation) {}

  DType activation() const { return activation_; }
  int64_t axis(const char* name) const {
    for (const Axis& a : axes_)
      if (std::string_view(a.name) == name) return a.size;
    fail("ERR_SHAPE", op_, ": axis ", name, " is not known yet");
  }

  void in(const char* name, Tensor& t, DType dtype, Axes axes) {
    if (!t) fail("ERR_ARGUMENT", op_, ": ", name, " is missing, expected ", text(axes));
    if (t.dtype != dtype) fail("ERR_DTYPE", op_, ": ", name, " is ", name_of(t.dtype), ", expected ", name_of(dtype));
    bind(name, t.dims.data(), t.rank, axes);
    if (!rows_ && t.rows.kind != Rows::Kind::all) rows_ = &t.rows;
  }
  void optional(const char* name, Tensor& t, DType dtype, Axes axes) {
    if (t) in(name, t, dtype, axes);
  }
  void weight(const char* name, Weight& w, Axes axes) {
    const int64_t dims[2] = {w.rank == 1 ? w.cols : w.rows, w.cols};
    if (w.rank == 0) fail("ERR_ARGUMENT", op_, ": ", name, " is missing, expected ", text(axes));
    bind(name, dims, w.rank, axes);
  }
  // An axis that follows from others: derive("hidden", axis("gateUp") / 2, "gateUp = 2 hidden", axis("gateUp") % 2 ==
  // 0)
  void derive(const char* name, int64_t size, const char* rule, bool holds) {
    if (!holds || size <= 0) fail("ERR_SHAPE", op_, ": ", describe(), " does not fit: ", rule);
    set("", name, size);
  }
  void require(bool holds, const char* rule) {
    if (!holds) fail("ERR_SHAPE", op_, ": ", describe(), " does not fit: ", rule);
  }
  // Results carry the live rows of the first input that has any, or of `like`.
  void out(const char*, Tensor& t, DType dtype, Axes axes, const Rows* rows = nullptr) {
    const int value = t.value;
    t = Tensor{};
    t.value = value;
    t.dtype = dtype;
    for (const char* a : axes) t.dims[size_t(t.rank++)] = axis(a);
    if (rows) {
      t.rows = *rows;
    } else if (rows_) {
      t.rows = *rows_;
    }
  }
  void state(const char* name, Tensor& t, DType dtype, Axes axes) { in(name, t, dtype, axes); }

 private:
  struct Axis {
    const char* name;
    int64_t size;
    std::string from;
  };
  static std::string text(Axes axes) {
    std::string s = "[";
    for (const char* a : axes) s += (s.size() > 1 ? ", " : "") + std::string(a);
    return s + "]";
  }
  std::string text_sizes(Axes axes) const {
    std::string s = "[";
    for (const char* a : axes) {
      const Axis* known = find(a);
      s += (s.size() > 1 ? ", " : "") + (known ? std::to_string(known->size) : std::string(a));
    }
    return s + "]";
  }
  const Axis* find(const char* name) const {
    for (const Axis& a : axes_)
      if (std::string_view(a.name) == name) return &a;
    return nullptr;
  }
  void set(const std::string& from, const char* name, int64_t size) {
    if (!find(name)) axes_.push_back({name, size, from});
  }
  std::string describe() const {
    std::string s;
    for (const Axis& a : axes_) s += (s.empty() ? "" : ", ") + std::string(a.name) + " = " + std::to_string(a.size);
    return s;
  }
  void bind(const char* name, const int64_t* dims, int rank, Axes axes) {
    const std::string found = shape_text(dims, rank);
    if (rank != int(axes.size()))
      fail("ERR_SHAPE", op_, ": ", name, " is ", found, ", expected ", text(axes), " (", axes.size(), " axes)");
    int i = 0;
    for (const char* axis_name : axes) {
      const int64_t size = dims[i++];
      const Axis* known = find(axis_name);
      if (known && known->size != size)
        fail("ERR_SHAPE", op_, ": ", name, " is ", found, ", expected ", text(axes), " = ", text_sizes(axes),
             ", because ", axis_name, " is ", known->size, known->from.empty() ? "" : " in " + known->from);
      set(concat(name, " ", found), axis_name, size);
    }
  }

  const char* op_;
  DType activation_;
  std::vector<Axis> axes_;
  const Rows* rows_ = nullptr;
};

// Calls visit(tensor, is_output) for every tensor that is present.
template <class Visit>
struct EachTensor {
  Visit visit;
  DType activation() const { return DType::bf16; }
  int64_t axis(const char*) const { return 0; }
  void in(const char*, Tensor& t, DType, Axes) { visit(t, false); }
  void state(const char*, Tensor& t, DType, Axes) { visit(t, false); }
  void optional(const char*, Tensor& t, DType, Axes) {
    if (t) visit(t, false);
  }
  void weight(const char*, Weight&, Axes) {}
  void derive(const char*, int64_t, const char*, bool) {}
  void require(bool, const char*) {}
  void out(const char*, Tensor& t, DType, Axes, const Rows* = nullptr) { visit(t, true); }
};
template <class Op, class Visit>
void each_tensor(Op& op, Visit visit) {
  EachTensor<Visit> v{visit};
  op.contract(v);
}

// Work of a command when every row is alive: bytes that must cross the memory bus once, floating-point operations.
struct Cost {
  double bytes = 0;
  double flops = 0;
};

// Sum of the sizes of inputs, weights and outputs; ops that touch less (a gather) say so in their own cost().
struct Traffic {
  double bytes = 0;
  DType activation() const { return DType::bf16; }
  int64_t axis(const char*) const { return 0; }
  void in(const char*, Tensor& t, DType, Axes) { bytes += double(t.bytes()); }
  void state(const char*, Tensor&, DType, Axes) {}
  void optional(const char*, Tensor& t, DType, Axes) {
    if (t) bytes += double(t.bytes());
  }
  void weight(const char*, Weight& w, Axes) { bytes += double(w.bytes()); }
  void derive(const char*, int64_t, const char*, bool) {}
  void require(bool, const char*) {}
  void out(const char*, Tensor& t, DType, Axes, const Rows* = nullptr) { bytes += double(t.bytes()); }
};
template <class Op>
double traffic(Op op) {
  Traffic t;
  op.contract(t);
  return t.bytes;
}

}  // namespace cria
