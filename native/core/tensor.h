// tensor.h - a rectangle of device memory as plain data: what commands and kernels are given.
#pragma once
#include <array>
#include <cstdint>
#include <string>

#include "dtype.h"

namespace cria {

// How many leading rows of a tensor are alive in this step; read from device memory when the command runs.
// Rows beyond are dead: their contents are undefined and nobody may depend on them.
struct Rows {
  enum class Kind : uint8_t {
    all,      // every row
    last,     // offsets[count - 1]: queryStart[seqs]
    present,  // the number of leading entries of offsets[0 .. count) that are not -1: outputs
  };
  Kind kind = Kind::all;
  const int32_t* offsets = nullptr;
  int64_t count = 0;
};

struct Tensor {
  void* data = nullptr;  // in device memory; nullptr until the arena is planned
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 4> dims{};  // row-major, the last one contiguous
  Rows rows{};                    // along dims[0]
  int value = -1;                 // index of the recorded value that this is; -1: memory from outside the program

  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= dims[size_t(i)];
    return n;
  }
  size_t bytes() const { return size_t(count()) * size_of(dtype); }
  explicit operator bool() const { return rank != 0; }  // optional arguments are absent when the rank is 0
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// A weight matrix [rows, cols] in bf16 as row blocks, in order: q, k, v of one projection may lie in different files.
struct RowBlock {
  const bf16* data = nullptr;  // [rows, cols], row-major; 2-byte aligned
  int64_t rows = 0;
};
struct Weight {
  const RowBlock* blocks = nullptr;
  int count = 0;
  int rank = 0;  // 2, or 1 for a vector, which is one block of one row
  int64_t rows = 0;
  int64_t cols = 0;
  size_t bytes() const { return size_t(rows) * size_t(cols) * 2; }
};

// "[7, 4096]"
inline std::string shape_text(const int64_t* dims, int rank) {
  std::string s = "[";
  for (int i = 0; i < rank; i++) s += (i ? ", " : "") + std::to_string(dims[i]);
  return s + "]";
}
inline std::string shape_text(const Tensor& t) { return shape_text(t.dims.data(), t.rank); }

}  // namespace cria
