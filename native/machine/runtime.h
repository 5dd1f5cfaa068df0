// runtime.h - what a device of this machine offers to host code: memory, one stream, and recorded launches to replay.
// devices/simt.cc implements it on emulated threads, devices/cuda.cu on a GPU.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../core/read_ahead.h"
#include "gpu.h"

namespace cria::CRIA_MACHINE {

using Kept = std::shared_ptr<const void>;  // what must outlive the work that is given
using Done = std::function<void(std::exception_ptr)>;

constexpr const char* kUnreadable =
    "a file of weights cannot be read: the disk failed, or the file became shorter while it was open";

// Launches in order. Replaying costs one call.
struct Graph {
  std::vector<Launched> launched;
  virtual ~Graph() = default;
};

// Everything takes effect in the order of the calls, and nothing waits but where it says so. The first failure is kept,
// and given to every later read.
class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual const Chip& chip() const = 0;
  virtual double free_memory() const = 0;  // bytes that allocate() can still give, nearly
  // Zeros, or NaN where nobody may rely on zeros. ERR_OUT_OF_MEMORY; may wait for the work under way before that.
  // Memory is free again after the work that was given before release(), which never throws.
  virtual void* allocate(size_t bytes, bool zero) = 0;
  virtual void release(void* memory) = 0;
  // Nobody may rely on what is there: the emulated machine makes it NaN.
  virtual void forget(void* /*memory*/, size_t /*bytes*/, Kept /*kept*/) {}
  virtual void write(void* to, const void* from, size_t bytes, Kept kept) = 0;  // copies `from` before it returns
  // `kept` owns `from`, which may be a mapped file: it is read ahead. Ends early when the device is closed.
  virtual void upload(void* to, const void* from, size_t bytes, Kept kept) = 0;
  virtual void read(void* into, const void* from, size_t bytes, Kept kept, Done done) = 0;
  virtual void copy(void* to, const void* from, size_t bytes, Kept kept) = 0;  // within the device
  virtual std::shared_ptr<Graph> record(const std::function<void(const Stream&)>& launches) = 0;
  virtual void replay(std::shared_ptr<Graph> graph, Kept kept) = 0;
  // Launches that are not recorded, with the address of a copy of `from`, made before it returns. `launches` is called
  // when their turn comes, on another thread.
  virtual void launch_with(const void* from, size_t bytes, std::function<void(const Stream&, const void*)> launches,
                           Kept kept) = 0;
  virtual void clock(double* seconds, Done done) = 0;  // when everything before has been done; only differences count
  // Waits for the task under way; those that wait are rejected with ERR_CLOSED. Never throws.
  virtual void close() = 0;
};

}  // namespace cria::CRIA_MACHINE
