// fiber.h - a function with a stack of its own that can stop in the middle: what an emulated GPU thread runs on.
//
// A switch saves the registers that a C++ call keeps, and nothing else (7 ns; ucontext also saves the signal mask, with
// a system call). Fibers of one scheduler stay on one operating system thread.
#pragma once
#include <cstddef>

namespace cria::simt {

// Stacks are equally large pieces of one reservation; only pages that were touched take memory.
class Stacks {
 public:
  static constexpr size_t kBytes = size_t{64} << 10;
  ~Stacks();
  void* get();         // the lowest address of a stack
  void put(void* at);  // to be used again

 private:
  struct Chunk;
  Chunk* chunks_ = nullptr;
  void* free_ = nullptr;  // a list through the free stacks
};

class Fiber {
 public:
  // Prepares body(arg) on this stack. It starts with the first resume(), and must never return: it ends by stop().
  void start(void* stack, void (*body)(void*), void* arg);
  void resume();  // runs the fiber until it stops; called by the scheduler
  void stop();    // back to who resumed it; called by the fiber

 private:
  void* here_ = nullptr;    // stack pointer (or context) of the fiber while it is stopped
  void* caller_ = nullptr;  // of the scheduler while the fiber runs
  void* stack_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* arg_ = nullptr;
  void* fake_caller_ = nullptr;  // AddressSanitizer's
  void* fake_here_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_bytes_ = 0;
  static void entry(Fiber* self);
  friend void fiber_entry(Fiber* self);
};

}  // namespace cria::simt
