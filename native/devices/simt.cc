// simt.cc - the emulated device: the GPU's host code and kernels on fibers. For tests.
#include <dlfcn.h>

#include <cstdlib>
#include <map>

#include "gpu_device.h"
#include "plugin.h"
#include "queue.h"

namespace cria::simt {
namespace {

constexpr size_t kCanary = 256;
constexpr unsigned char kCanaryByte = 0xC5;

// Of a kernel in this library, as nm has it: kernels have no names at run time.
std::string place_of(const void* kernel) {
  Dl_info library{};
  dladdr(kernel, &library);
  std::ostringstream text;
  text << "0x" << std::hex << uintptr_t(kernel) - uintptr_t(library.dli_fbase);
  return text.str();
}

struct Launches final : Graph {
  std::vector<Launch> list;
};

class HostRuntime final : public Runtime {
 public:
  explicit HostRuntime(Options options) : machine_(std::move(options)) {
    chip_ = {concat("emulated threads, ", machine_.options().text()), machine_.options().arch, machine_.options().sms,
             machine_.options().most_shared()};
  }
  ~HostRuntime() override { close(); }
  const Chip& chip() const override { return chip_; }

  double free_memory() const override {
    std::lock_guard lock(mutex_);
    return machine_.options().memory - used_;
  }
  void* allocate(size_t bytes, bool zero) override {
    if (double(bytes) > free_memory())
      cria::fail("ERR_OUT_OF_MEMORY", "simt: ", bytes, " bytes asked for, but only ", uint64_t(free_memory()), " of ",
                 uint64_t(machine_.options().memory), " are free");
    auto* block =
        static_cast<unsigned char*>(std::aligned_alloc(kCanary, (bytes + 3 * kCanary - 1) / kCanary * kCanary));
    if (!block) cria::fail("ERR_OUT_OF_MEMORY", "simt: no ", bytes, " bytes to be had");
    unsigned char* const data = block + kCanary;
    std::memset(block, kCanaryByte, kCanary);
    std::memset(data, zero ? 0 : 0xff, bytes);
    std::memset(data + bytes, kCanaryByte, kCanary);
    std::lock_guard lock(mutex_);
    sizes_[data] = bytes;
    used_ += double(bytes);
    return data;
  }
  void release(void* memory) override {
    {
      std::lock_guard lock(mutex_);
      const auto at = sizes_.find(static_cast<unsigned char*>(memory));
      used_ -= double(at->second);
      sizes_.erase(at);
    }
    std::free(static_cast<unsigned char*>(memory) - kCanary);
  }
  void forget(void* memory, size_t bytes, Kept kept) override {
    queue_.add([memory, bytes, kept = std::move(kept)] { std::memset(memory, 0xff, bytes); });
  }
  void write(void* to, const void* from, size_t bytes, Kept kept) override {
    const auto* first = static_cast<const std::byte*>(from);
    queue_.add([to, kept = std::move(kept), data = std::vector<std::byte>(first, first + bytes)] {
      if (!data.empty()) std::memcpy(to, data.data(), data.size());
    });
  }
  void upload(void* to, const void* from, size_t bytes, Kept kept) override {
    queue_.add([to, from, bytes, kept = std::move(kept)] {
      if (!read_pages(from, bytes)) cria::fail("ERR_MODEL_FILE_UNREADABLE", kUnreadable);
      std::memcpy(to, from, bytes);
    });
  }
  void copy(void* to, const void* from, size_t bytes, Kept kept) override {
    queue_.add([to, from, bytes, kept = std::move(kept)] { std::memcpy(to, from, bytes); });
  }
  void read(void* into, const void* from, size_t bytes, Kept kept, Done done) override {
    queue_.add(
        [into, from, bytes, kept = std::move(kept)] {
          if (bytes) std::memcpy(into, from, bytes);
        },
        std::move(done));
  }
  std::shared_ptr<Graph> record(const std::function<void(const Stream&)>& launches) override {
    auto graph = std::make_shared<Launches>();
    Machine recorder{Options{}};
    launches(Stream{&recorder});
    graph->list = recorder.take();
    for (const Launch& l : graph->list)
      if (l.shared > chip_.shared)
        cria::fail("ERR_DEVICE_KERNEL", l.name, ": a block has ", l.shared, " bytes of shared memory, of ",
                   chip_.shared, " that there are; CRIA_SIMT=", machine_.options().text(), " repeats it");
    for (const Launch& l : graph->list) graph->launched.push_back({place_of(l.kernel), l.grid, l.block, l.shared});
    return graph;
  }
  void replay(std::shared_ptr<Graph> graph, Kept kept) override {
    queue_.add([this, graph = std::move(graph), kept = std::move(kept)] {
      for (const Launch& launch : static_cast<const Launches&>(*graph).list) machine_.submit(launch);
      machine_.drain();
      check_canaries();
    });
  }
  void launch_with(const void* from, size_t bytes, std::function<void(const Stream&, const void*)> launches,
                   Kept kept) override {
    const auto* first = static_cast<const std::byte*>(from);
    queue_.add([this, launches = std::move(launches), kept = std::move(kept),
                data = std::vector<std::byte>(first, first + bytes)] {
      launches(Stream{&machine_}, data.data());
      machine_.drain();
      check_canaries();
    });
  }
  void clock(double* seconds, Done done) override {
    queue_.add([seconds] { *seconds = Queue::now(); }, std::move(done));
  }
  void close() override { queue_.close(); }

 private:
  void check_canaries() {
    std::lock_guard lock(mutex_);
    for (const auto& [data, bytes] : sizes_)
      for (size_t i = 0; i < kCanary; i++)
        if (data[bytes + i] != kCanaryByte || *(data - kCanary + i) != kCanaryByte)
          cria::fail("ERR_DEVICE_KERNEL", "simt: a kernel wrote outside of a buffer of ", bytes,
                     " bytes; CRIA_SIMT=", machine_.options().text(), " repeats it");
  }

  Chip chip_;
  Machine machine_;
  mutable std::mutex mutex_;
  double used_ = 0;
  std::map<unsigned char*, size_t> sizes_;
  Queue queue_{"simt"};  // last: its thread uses all of the above
};

}  // namespace

std::shared_ptr<LibraryProduct> library_product(const Product&) { return nullptr; }

}  // namespace cria::simt

extern "C" __attribute__((visibility("default"))) cria::Device* cria_open_device(const cria::PluginOptions& options) {
  auto runtime = std::make_shared<cria::simt::HostRuntime>(cria::simt::Options::parse(options.settings));
  return new cria::simt::GpuDevice("simt", std::move(runtime), options.fuse);
}
