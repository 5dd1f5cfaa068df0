// worker.h - how a CPU kernel shares its work: every thread of the pool runs the same function on the same command.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "../core/tensor.h"

namespace cria {

// One thread's view of the team. All threads call the same kernel with the same op; take() hands out units of work,
// barrier() separates phases. Results must not depend on which thread does a unit, nor on how many threads there are.
class Worker {
 public:
  int index = 0;                 // 0 .. count - 1
  int count = 1;                 // threads in the team
  std::byte* scratch = nullptr;  // workspace(op) bytes, shared by the team, 64-byte aligned, undefined at the start

  // The next `grain` units of `total`, dealt dynamically: for (auto [i, end] = ...; take(i, end, total, grain);) ...
  // Every thread must drain a loop (take returns false) before the next barrier; barrier() starts a new deal.
  [[gnu::always_inline]] bool take(int64_t& begin, int64_t& end, int64_t total, int64_t grain = 1) {
    begin = next_->fetch_add(grain, std::memory_order_relaxed);
    if (begin >= total) return false;
    end = begin + grain < total ? begin + grain : total;
    return true;
  }
  // Waits for the whole team; what was written before is visible after. Resets the deal of take().
  [[gnu::always_inline]] void barrier() { barrier_(team_, *this); }

  // For the pool only.
  std::atomic<int64_t>* next_ = nullptr;
  void (*barrier_)(void*, Worker&) = nullptr;
  void* team_ = nullptr;
};

// The number of live leading rows of a tensor's first axis, in this step.
[[gnu::always_inline]] inline int64_t live_rows(const Tensor& t) {
  const Rows& r = t.rows;
  if (r.kind == Rows::Kind::all) return t.dims[0];
  if (r.kind == Rows::Kind::last) {
    const int64_t n = r.offsets[r.count - 1];
    return n < 0 ? 0 : n < t.dims[0] ? n : t.dims[0];
  }
  int64_t n = 0;
  while (n < r.count && r.offsets[n] >= 0) n++;
  return n;
}

}  // namespace cria
