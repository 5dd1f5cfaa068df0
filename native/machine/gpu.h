// gpu.h - what host code of an op is given: where to launch, and what the machine can do.
#pragma once
#include <string>

#include "../core/error.h"
#include "../core/tensor.h"
#include "ptx/warp.h"

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

// Leading offsets that are not negative, of the first `count`; 32 at a time by the lanes of a warp together.
CRIA_DEVICE int64_t leading(const int32_t* offsets, int64_t count) {
  for (int64_t first = 0; first < count; first += 32) {
    const int64_t mine = first + threadIdx.x % 32;
    const uint32_t ends = ballot(kAllLanes, mine >= count || offsets[mine] < 0);
    if (ends == 0) continue;
    int there = 0;
    while (!(ends >> there & 1)) there++;
    return first + there;
  }
  return count;
}
// Rows that are alive, and whether one is; the same for all lanes of a warp, which call it together.
CRIA_DEVICE int64_t live_rows(const Live& live) {
  if (live.kind == Rows::Kind::all) return live.rows;
  if (live.kind == Rows::Kind::present) return leading(live.offsets, live.count);
  const int64_t n = live.offsets[live.count - 1];
  return n < 0 ? 0 : n < live.rows ? n : live.rows;
}
CRIA_DEVICE bool is_live(const Live& live, int64_t row) {
  if (live.kind != Rows::Kind::present) return row < live_rows(live);
  return row < live.count && leading(live.offsets, row + 1) > row;
}

// Kernels move 16 bytes at a time.
inline void multiple_of_8(const char* op, const char* axis, int64_t size) {
  if (size % 8 != 0)
    cria::fail("ERR_DEVICE_UNSUPPORTED", op, ": ", axis, " is ", size,
               ", expected a multiple of 8 on a GPU; the device 'cpu' takes any size");
}

}  // namespace cria::CRIA_MACHINE
