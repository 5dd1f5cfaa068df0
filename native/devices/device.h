// device.h - what every device can do. cpu is built in; cuda and simt are plug-in libraries that implement the same
// class.
//
// A device is a stream: run, write, random and read take effect in the order of the calls and none of them waits.
// Methods are called from one thread. A failure is kept and given to the next read; a device that failed stays failed.
#pragma once
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "../ops/ceilings.h"
#include "../ops/recording.h"

namespace cria {

// A piece of device memory, zero at first.
struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  virtual ~Buffer() = default;
};

using Keep = std::vector<std::shared_ptr<const void>>;  // what must outlive the commands that point into it

// A weight as its device holds it. A device may bring it into its memory when it is first looked at.
struct WeightBlocks {
  std::vector<RowBlock> blocks;
  int rank = 2;
  int64_t rows = 0;
  int64_t cols = 0;
  Keep keep;
  WeightBlocks() = default;
  virtual ~WeightBlocks() = default;
  virtual Weight view() const { return {blocks.data(), int(blocks.size()), rank, rows, cols}; }
};
using SharedWeight = std::shared_ptr<const WeightBlocks>;

// An element of 4 bytes, and where it goes; a kernel loads both at once.
struct alignas(8) Placed {
  int32_t at;
  uint32_t value;
};

// A kernel as a program starts it.
struct KernelLaunch {
  std::string kernel;
  unsigned grid[3], block[3];
  size_t shared;  // bytes of dynamic shared memory
};

// A recorded forward pass with its memory. Results lie outside the arena in two copies, used in turn.
struct Program {
  std::vector<Command> commands[2];  // alike but for the addresses of results
  std::vector<int> results;          // values returned from the recording
  std::vector<void*> addresses[2];   // of each result
  std::shared_ptr<Buffer> arena;     // what no program needs after it has run: all that are alive share it
  std::shared_ptr<Buffer> memory;    // two copies of the results
  size_t values_bytes = 0;           // of it: what commands leave for each other, and then
  std::byte* workspace = nullptr;    // what each needs for itself
  size_t workspace_bytes = 0;
  Keep keep;
  int64_t runs = 0;
  virtual ~Program() = default;
  virtual std::vector<KernelLaunch> launches() const { return {}; }
  int copy_of_last_run() const { return runs > 0 ? int((runs - 1) & 1) : 0; }
};

class Device {
 public:
  using Done = std::function<void(std::exception_ptr)>;  // called once, on any thread

  virtual ~Device() = default;
  virtual std::string name() const = 0;         // "cpu", "cuda:0"
  virtual std::string description() const = 0;  // one line for people: instruction set, threads, memory
  virtual DType activation() const = 0;         // bf16, or f32 in the float32 test mode

  virtual std::shared_ptr<Buffer> allocate(size_t bytes) = 0;  // ERR_OUT_OF_MEMORY
  // Bytes of memory of its own that are free; infinite on the host, where weights stay where they are mapped.
  virtual double free_memory() const { return std::numeric_limits<double>::infinity(); }
  virtual void write(void* to, std::shared_ptr<const void> keep, const void* from, size_t bytes) = 0;
  // Where a place comes twice, one of its values stays.
  virtual void write_at(void* to, std::shared_ptr<const void> keep, std::vector<Placed> elements) = 0;
  virtual void read(const void* from, std::shared_ptr<const void> keep, void* into, size_t bytes, Done done) = 0;

  // Rows of parts as one weight. Parts come from adopt, random or stack.
  virtual SharedWeight adopt(const bf16* data, int rank, int64_t rows, int64_t cols,
                             std::shared_ptr<const void> owner) = 0;
  virtual SharedWeight stack(const std::vector<SharedWeight>& parts) = 0;
  virtual SharedWeight random(int rank, int64_t rows, int64_t cols, uint64_t seed, float std) = 0;

  virtual std::shared_ptr<Program> prepare(const Recording& recording, const std::vector<int>& results, Keep keep) = 0;
  virtual void run(std::shared_ptr<Program> program) = 0;
  // Copies whole pages of one cache tensor: bytes a page, pairs of page numbers, in order.
  virtual void copy_pages(void* data, size_t page_bytes, std::vector<int32_t> from, std::vector<int32_t> to,
                          std::shared_ptr<const void> keep) = 0;
  // Seconds on the device's clock when everything so far has been done; only differences count. *seconds must live
  // until done.
  virtual void clock(double* seconds, Done done) = 0;
  virtual void measure(Ceilings* result, Done done) = 0;  // half a second of work; result must live until done
  // x W^T, x [rows, in], W [out, in], by the vendor's library, if the machine has one.
  virtual void measure_library(int64_t rows, int64_t out, int64_t in, LibraryRate* result, Done done) = 0;
  virtual void close() = 0;  // stops within one command; reads that wait are rejected with ERR_CLOSED
};

// Plans memory and fills in every address: the part of prepare() that all devices share. workspace: bytes for commands.
// shared: the arena of the programs before; a larger one takes its place when it is too small.
void place(Program& program, const Recording& recording, const std::vector<int>& results, size_t workspace,
           std::weak_ptr<Buffer>& shared, const std::function<std::shared_ptr<Buffer>(size_t)>& allocate);

struct DeviceReport {
  std::string device;
  bool available = false;
  std::string reason;  // why not, or what it is
  double memory = 0;   // bytes
  double free = 0;     // bytes nobody uses; 0: not known
};

struct CpuOptions {
  int threads = 0;  // 0: as many as the process may use
  DType activation = DType::bf16;
  std::string isa;  // "", scalar, avx2, avx512, avx512bf16
};
std::unique_ptr<Device> open_cpu(const CpuOptions& options);
DeviceReport report_cpu();

}  // namespace cria
