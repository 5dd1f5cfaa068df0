// team.cc - a few spins, then sleep: kernels follow each other within microseconds, steps within milliseconds.
#include "team.h"

namespace cria {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`. 4,000 pauses are some 50-100 us: longer than the gap between two commands.
void wait_while(std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < 4000; i++) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int threads) : size_(threads) {
  for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { loop(i); });
}

Team::~Team() {
  ending_ = true;
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  for (std::thread& t : threads_) t.join();
}

Worker Team::worker(int index, std::byte* scratch) {
  Worker w;
  w.index = index;
  w.count = size_;
  w.scratch = scratch;
  w.next_ = &next_;
  w.barrier_ = barrier;
  w.team_ = this;
  return w;
}

void Team::barrier(void* team, Worker&) { static_cast<Team*>(team)->arrive(); }

// The last one to arrive starts a new deal and lets everybody go.
void Team::arrive() {
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(size_)) {
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
  } else {
    wait_while(phase_, phase);
  }
}

void Team::run(const std::function<void(Worker&)>& f, std::byte* scratch) {
  f_ = &f;
  scratch_ = scratch;
  next_.store(0, std::memory_order_relaxed);
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  Worker w = worker(0, scratch);
  f(w);
  arrive();  // all are done with f
}

void Team::loop(int index) {
  for (uint32_t job = 0;; job++) {
    wait_while(job_, job);
    if (ending_) return;
    Worker w = worker(index, scratch_);
    (*f_)(w);
    arrive();
  }
}

}  // namespace cria
