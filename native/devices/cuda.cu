// cuda.cu - the runtime of a GPU, as a plug-in library: static cudart, nothing else of the toolkit.
//
// A thread submits (Queue) and never waits for the GPU; a second one waits for events, in their order, and tells who
// asked. Host memory passes through pinned blocks; a block returns when the event behind its copy has passed.
#include <condition_variable>
#include <deque>
#include <sstream>

#include "driver.h"
#include "gpu_device.h"
#include "pinned.h"
#include "plugin.h"
#include "queue.h"

namespace cria::cuda {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  const char* const code = error == cudaErrorMemoryAllocation ? "ERR_OUT_OF_MEMORY" : "ERR_DEVICE_FAILED";
  const std::string text = concat(what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
  cudaGetLastError();
  cria::fail(code, text);
}

namespace {

constexpr size_t kChunk = 16 << 20;    // of an upload
constexpr size_t kAhead = 8 * kChunk;  // what the disk reads before it is copied
constexpr size_t kMostPinned = 4 * kChunk;
constexpr double kReserve = 256e6;  // bytes of device memory that stay free: the context and graphs take some later

// Waits for events in their order; keeps what work needs until it has been done.
class Completions {
 public:
  using Then = std::function<void(std::exception_ptr)>;
  explicit Completions(int device) : thread_([this, device] { loop(device); }) {}
  ~Completions() {
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_one();
    thread_.join();
    for (cudaEvent_t e : idle_) cudaEventDestroy(e);
  }
  // Calls then() once everything on the stream so far has been done.
  void after(cudaStream_t stream, Then then) {
    cudaEvent_t event = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        event = idle_.back();
        idle_.pop_back();
      }
    }
    if (!event) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
    const cudaError_t error = cudaEventRecord(event, stream);
    std::lock_guard lock(mutex_);
    if (error != cudaSuccess) idle_.push_back(event);
    check(error, "an event");
    waiting_.push_back({event, std::move(then)});
    under_way_++;
    wake_.notify_one();
  }
  // Until everybody has been told and let go of what they kept: among that may be the last owner of this.
  void drain() {
    std::unique_lock lock(mutex_);
    told_.wait(lock, [&] { return under_way_ == 0; });
  }

 private:
  struct Waiting {
    cudaEvent_t event;
    Then then;
  };
  void loop(int device) {
    cudaSetDevice(device);
    for (;;) {
      Waiting next;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return ending_ || !waiting_.empty(); });
        if (waiting_.empty()) return;
        next = std::move(waiting_.front());
        waiting_.pop_front();
      }
      std::exception_ptr failure;
      try {
        check(cudaEventSynchronize(next.event), "the GPU");
      } catch (...) {
        failure = std::current_exception();
      }
      next.then(failure);
      next.then = nullptr;
      std::lock_guard lock(mutex_);
      idle_.push_back(next.event);
      under_way_--;
      told_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, told_;
  int under_way_ = 0;
  std::deque<Waiting> waiting_;
  std::vector<cudaEvent_t> idle_;
  bool ending_ = false;
  std::thread thread_;
};

// One that knows its time.
struct Event {
  cudaEvent_t handle = nullptr;
  Event() { check(cudaEventCreate(&handle), "an event"); }
  ~Event() { cudaEventDestroy(handle); }
};

struct Executable final : Graph {
  cudaGraphExec_t handle = nullptr;
  ~Executable() override {
    if (handle) cudaGraphExecDestroy(handle);
  }
};

class CudaRuntime final : public Runtime {
 public:
  explicit CudaRuntime(int device) : device_(device), completions_(device), queue_(concat("cuda:", device)) {
    use();
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, device), "the properties of the GPU");
    chip_ = {concat(p.name, ", sm_", p.major, p.minor), p.major * 10 + p.minor, p.multiProcessorCount,
             p.sharedMemPerBlockOptin, double(p.totalGlobalMem)};
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    check(cudaStreamCreateWithFlags(&capture_, cudaStreamNonBlocking), "a stream");
  }
  ~CudaRuntime() override {
    close();  // waits for what was freed after an earlier one, too
    cudaStreamDestroy(stream_);
    cudaStreamDestroy(capture_);
  }
  const Chip& chip() const override { return chip_; }

  double free_memory() const override {
    use();
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "the memory of the GPU");
    return std::max(0.0, double(free) - kReserve);
  }
  void* allocate(size_t bytes, bool zero) override {
    use();
    size_t free = 0, total = 0;
    const auto enough = [&] {
      check(cudaMemGetInfo(&free, &total), "the memory of the GPU");
      return double(bytes) + kReserve <= double(free);
    };
    if (!enough()) {
      // What was let go of may be kept by work, in the queue, on the stream or in the pool: this waits for all of that.
      cudaMemPool_t pool = nullptr;
      queue_.wait();
      completions_.drain();
      queue_.wait();  // for what was released meanwhile
      check(cudaStreamSynchronize(stream_), "the GPU");
      check(cudaDeviceGetDefaultMemPool(&pool, device_), "memory of the GPU");
      check(cudaMemPoolTrimTo(pool, 0), "memory of the GPU");
    }
    if (!enough())
      cria::fail("ERR_OUT_OF_MEMORY", "cuda:", device_, ": ", bytes, " bytes asked for, but only ", free, " of ", total,
                 " are free; a shorter context, fewer sequences or a smaller model need less");
    void* memory = nullptr;
    check(cudaMallocAsync(&memory, bytes, stream_), "memory of the GPU");
    if (zero) check(cudaMemsetAsync(memory, 0, bytes, stream_), "memory of the GPU");
    return memory;
  }
  // After everything given so far, also when the queue was closed or has failed: replays may still be under way.
  // Nobody is there to hear of an error, and a GPU that failed says so to the next work. After a failure nothing else
  // may wait for the stream, and only a wait lets the pool give back what is free.
  void release(void* memory) override {
    const auto free = [this, memory](const std::exception_ptr& failure) {
      cudaSetDevice(device_);
      cudaFreeAsync(memory, stream_);
      if (failure) cudaStreamSynchronize(stream_);
    };
    queue_.add([] {}, free);
  }
  void write(void* to, const void* from, size_t bytes, Kept kept) override {
    const auto* first = static_cast<const std::byte*>(from);
    queue_.add([this, to, kept = std::move(kept), data = std::vector<std::byte>(first, first + bytes)] {
      send(to, data.data(), data.size(), kept);
    });
  }
  void upload(void* to, const void* from, size_t bytes, Kept kept) override {
    const auto* const first = static_cast<const std::byte*>(from);
    announce_pages(first, std::min(bytes, kAhead));  // the disk reads while others are still being copied
    queue_.add([this, to, first, bytes, kept = std::move(kept)] {
      for (size_t at = 0; at < bytes && !queue_.closing(); at += kChunk) {
        if (at + kAhead < bytes) announce_pages(first + at + kAhead, std::min(kChunk, bytes - at - kAhead));
        const size_t size = std::min(kChunk, bytes - at);
        if (!read_pages(first + at, size)) cria::fail("ERR_MODEL_FILE_UNREADABLE", kUnreadable);
        send(static_cast<std::byte*>(to) + at, first + at, size, kept);
      }
    });
  }
  void read(void* into, const void* from, size_t bytes, Kept kept, Done done) override {
    auto told = std::make_shared<Done>(std::move(done));
    queue_.add(
        [this, into, from, bytes, kept = std::move(kept), told] {
          use();
          const Pinned::Block block = pinned_.get(bytes);
          if (bytes)
            check(cudaMemcpyAsync(block.get(), from, bytes, cudaMemcpyDeviceToHost, stream_), "a copy to the host");
          completions_.after(stream_, [into, bytes, block, kept, told](std::exception_ptr failure) {
            if (!failure && bytes) std::memcpy(into, block.get(), bytes);
            std::exchange(*told, nullptr)(failure);
          });
        },
        [told](std::exception_ptr failure) {
          if (failure && *told) std::exchange(*told, nullptr)(failure);
        });
  }
  void copy(void* to, const void* from, size_t bytes, Kept kept) override {
    queue_.add([this, to, from, bytes, kept = std::move(kept)] {
      use();
      check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "a copy within the GPU");
      completions_.after(stream_, [kept](std::exception_ptr) {});
    });
  }
  std::shared_ptr<Graph> record(const std::function<void(const Stream&)>& launches) override {
    use();
    auto made = std::make_shared<Executable>();
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(capture_, cudaStreamCaptureModeThreadLocal), "a graph");
    try {
      launches(Stream{capture_, &made->launched});
    } catch (...) {
      cudaStreamEndCapture(capture_, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(capture_, &graph), "a graph");
    const cudaError_t error = cudaGraphInstantiate(&made->handle, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "a graph");
    return made;
  }
  void replay(std::shared_ptr<Graph> graph, Kept kept) override {
    queue_.add([this, graph = std::move(graph), kept = std::move(kept)] {
      use();
      check(cudaGraphLaunch(static_cast<const Executable&>(*graph).handle, stream_), "a graph");
      completions_.after(stream_, [graph, kept](std::exception_ptr) {});
    });
  }
  // The kernels read the pinned block where it is: one launch, and no copy before it.
  void launch_with(const void* from, size_t bytes, std::function<void(const Stream&, const void*)> launches,
                   Kept kept) override {
    const auto* first = static_cast<const std::byte*>(from);
    queue_.add([this, launches = std::move(launches), kept = std::move(kept),
                data = std::vector<std::byte>(first, first + bytes)] {
      pin(data.data(), data.size(), kept, [&](const std::byte* block) { launches(Stream{stream_}, block); });
    });
  }
  void clock(double* seconds, Done done) override {
    auto told = std::make_shared<Done>(std::move(done));
    queue_.add(
        [this, seconds, told] {
          use();
          const auto event = std::make_shared<Event>();
          check(cudaEventRecord(event->handle, stream_), "an event");
          completions_.after(stream_, [this, seconds, event, told](std::exception_ptr failure) {
            float milliseconds = 0;
            if (!failure && clock_ && cudaEventElapsedTime(&milliseconds, clock_->handle, event->handle) == cudaSuccess)
              clock_seconds_ += double(milliseconds) / 1000;
            clock_ = event;
            *seconds = clock_seconds_;
            std::exchange(*told, nullptr)(failure);
          });
        },
        [told](std::exception_ptr failure) {
          if (failure && *told) std::exchange(*told, nullptr)(failure);
        });
  }
  void close() override {
    queue_.close();
    cudaSetDevice(device_);  // any call may return an earlier fault of the GPU, and destructors call this
    cudaStreamSynchronize(stream_);
    completions_.drain();
  }

 private:
  void use() const { check(cudaSetDevice(device_), "the GPU"); }
  void send(void* to, const std::byte* from, size_t bytes, const Kept& kept) {
    if (bytes == 0) return;
    pin(from, bytes, kept, [&](const std::byte* block) {
      check(cudaMemcpyAsync(to, block, bytes, cudaMemcpyHostToDevice, stream_), "a copy to the GPU");
    });
  }
  // enqueue() is given a copy that lies in a pinned block until what it enqueues has been done.
  template <class Enqueue>
  void pin(const std::byte* from, size_t bytes, const Kept& kept, const Enqueue& enqueue) {
    use();
    const Pinned::Block block = pinned_.get(bytes);
    std::memcpy(block.get(), from, bytes);
    enqueue(block.get());
    completions_.after(stream_, [block, kept](std::exception_ptr) {});
  }

  const int device_;
  Chip chip_;
  cudaStream_t stream_ = nullptr, capture_ = nullptr;
  Pinned pinned_{kMostPinned};
  std::shared_ptr<Event> clock_;  // the last one that clock() recorded, and its time: the completions' thread has them
  double clock_seconds_ = 0;
  Completions completions_;
  Queue queue_;  // last: its thread uses all of the above
};

std::vector<std::string> architectures() {
  std::vector<std::string> all;
  std::istringstream list(CRIA_ARCHITECTURES);
  for (std::string one; std::getline(list, one, ',');) all.push_back(one);
  return all;
}

std::string problem_of(const cudaDeviceProp& p) { return gpu_problem(p.name, p.major, p.minor, architectures()); }

}  // namespace
}  // namespace cria::cuda

#define CRIA_EXPORT extern "C" __attribute__((visibility("default")))

CRIA_EXPORT cria::Device* cria_open_device(const cria::PluginOptions& options) {
  using namespace cria::cuda;
  const std::string name = cria::concat("cuda:", options.index);
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
  if (options.index >= count)
    cria::fail("ERR_DEVICE_UNAVAILABLE", name, ": the driver sees ", count, count == 1 ? " GPU" : " GPUs",
               "; CUDA_VISIBLE_DEVICES may hide some");
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, options.index), name.c_str());
  if (const std::string why = problem_of(p); !why.empty()) cria::fail("ERR_DEVICE_UNSUPPORTED", name, ": ", why);
  return new GpuDevice(name, std::make_shared<CudaRuntime>(options.index), options.fuse);
}

CRIA_EXPORT void cria_list_devices(std::vector<cria::DeviceReport>& list) {
  using namespace cria::cuda;
  int count = 0;
  std::string problem = "the driver sees no GPU; CUDA_VISIBLE_DEVICES may hide some";
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess && error != cudaErrorNoDevice)
    problem = cria::concat("the driver says: ", cudaGetErrorString(error));
  if (error != cudaSuccess) count = 0;
  if (count == 0) list.push_back({"cuda:0", false, problem});
  for (int i = 0; i < count; i++) {
    cudaDeviceProp p{};
    if (const cudaError_t unknown = cudaGetDeviceProperties(&p, i); unknown != cudaSuccess) {
      list.push_back({cria::concat("cuda:", i), false, cria::concat("the driver says: ", cudaGetErrorString(unknown))});
      continue;
    }
    char pci[32] = "";
    if (cudaDeviceGetPCIBusId(pci, sizeof(pci), i) != cudaSuccess) pci[0] = 0;
    const std::string why = problem_of(p);
    const std::string what = cria::concat(p.name, ", compute capability ", p.major, ".", p.minor);
    list.push_back({cria::concat("cuda:", i), why.empty(), why.empty() ? what : why, double(p.totalGlobalMem),
                    cria::free_memory(pci)});
  }
}

CRIA_EXPORT void cria_describe(cria::PluginBuild& build) {
  build.cuda = CUDART_VERSION;
  build.architectures = cria::cuda::architectures();
}
