// gpu.h - what host code of an op is given: where to launch, and what the machine can do.
#pragma once
#include <string>

#include "../core/error.h"
#include "../core/tensor.h"
#include "simt.h"

namespace cria::CRIA_MACHINE {

// What decides which kernel runs, together with the shape.
struct Chip {
  std::string name;
  int arch = 0;                // 80, 90, 100: compute capability, times 10
  int sms = 1;                 // streaming multiprocessors
  size_t shared = 227 * 1024;  // bytes of shared memory that a block can have
  double memory = 0;           // bytes
};

struct Gpu {
  // Kernels may start early, ask for weights, and wait for the kernel before when they need what it wrote.
  bool dependent() const { return chip->arch >= 90; }
  Stream stream;
  const Chip* chip = nullptr;
  std::byte* workspace = nullptr;  // the largest workspace() of all commands
  uint32_t* counters = nullptr;    // kCounters of them, zero between kernels
};
constexpr int kCounters = 4096;

// Rows of a tensor that are alive, as a kernel argument.
struct Live {
  Rows::Kind kind;
  int count;               // of offsets
  int64_t rows;            // at most
  const int32_t* offsets;  // in device memory
};
inline Live live_of(const Tensor& t) { return {t.rows.kind, int(t.rows.count), t.dims[0], t.rows.offsets}; }

// Whether a row is alive; the same for all lanes of the warp, which call it together.
CRIA_DEVICE bool is_live(const Live& live, int64_t row) {
  if (live.kind == Rows::Kind::all) return row < live.rows;
  if (live.kind == Rows::Kind::last) return row < live.offsets[live.count - 1] && row < live.rows;
  if (row >= live.count) return false;
  for (int64_t i = 0; i <= row; i++)
    if (live.offsets[i] < 0) return false;
  return true;
}
CRIA_DEVICE int64_t live_rows(const Live& live) {
  int64_t n = live.rows;
  if (live.kind == Rows::Kind::last) {
    n = live.offsets[live.count - 1];
    n = n < 0 ? 0 : n < live.rows ? n : live.rows;
  } else if (live.kind == Rows::Kind::present) {
    for (n = 0; n < live.count && live.offsets[n] >= 0;) n++;
  }
  return n;
}

// Kernels move 16 bytes at a time.
inline void multiple_of_8(const char* op, const char* axis, int64_t size) {
  if (size % 8 != 0)
    cria::fail("ERR_DEVICE_UNSUPPORTED", op, ": ", axis, " is ", size,
               ", expected a multiple of 8 on a GPU; the device 'cpu' takes any size");
}

}  // namespace cria::CRIA_MACHINE
