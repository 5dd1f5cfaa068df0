// cpu.cc - the CPU device: a thread that owns the queue, and a team that runs every command together.
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include "../core/random.h"
#include "isa.h"
#include "memory.h"
#include "queue.h"
#include "team.h"

namespace cria {
namespace {

struct CpuProgram : Program {
  // Whether waking and waiting for other threads would cost more than they save: about 50 waits a step, which take a
  // microsecond on an idle machine and much more on a busy one, against a step of less than 1.5 ms. One core moves some
  // 10 GB/s and 50 GFLOP/s. The results are the same either way.
  bool small() const {
    double seconds = 0;
    for (const Command& command : commands[0])
      if (const auto* linear = std::get_if<Linear>(&command))
        seconds += double(linear->weight.bytes()) / 10e9 +
                   2.0 * double(live_rows(linear->x)) * double(linear->weight.bytes()) / 2 / 50e9;
    return seconds < 1.5e-3;
  }
};

int usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return int(std::thread::hardware_concurrency());
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options)
      : isa_(choose_isa(options.isa)),
        threads_(options.threads > 0 ? options.threads : std::max(1, usable_threads())),
        activation_(options.activation),
        team_(threads_) {}
  ~CpuDevice() override { close(); }

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    return concat("cpu (", isa_.name, ", ", threads_, threads_ == 1 ? " thread" : " threads",
                  activation_ == DType::f32 ? ", float32 activations" : "", ")");
  }
  DType activation() const override { return activation_; }
  std::shared_ptr<Buffer> allocate(size_t bytes) override { return host_memory(bytes); }

  void write(void* to, std::shared_ptr<const void> keep, const void* from, size_t bytes) override {
    const auto* first = static_cast<const std::byte*>(from);
    queue_.add([to, keep = std::move(keep), data = std::vector<std::byte>(first, first + bytes)] {
      if (!data.empty()) std::memcpy(to, data.data(), data.size());
    });
  }

  void write_at(void* to, std::shared_ptr<const void> keep, std::vector<Placed> elements) override {
    queue_.add([to, keep = std::move(keep), elements = std::move(elements)] {
      for (const Placed& e : elements) static_cast<uint32_t*>(to)[e.at] = e.value;
    });
  }

  void read(const void* from, std::shared_ptr<const void> keep, void* into, size_t bytes, Done done) override {
    queue_.add(
        [from, keep = std::move(keep), into, bytes] {
          if (bytes) std::memcpy(into, from, bytes);
        },
        std::move(done));
  }

  SharedWeight adopt(const bf16* data, int rank, int64_t rows, int64_t cols,
                     std::shared_ptr<const void> owner) override {
    auto w = std::make_shared<WeightBlocks>();
    w->blocks = {{data, rows}};
    w->rank = rank;
    w->rows = rows;
    w->cols = cols;
    w->keep = {std::move(owner)};
    return w;
  }

  SharedWeight stack(const std::vector<SharedWeight>& parts) override {
    auto w = std::make_shared<WeightBlocks>();
    w->cols = parts.front()->cols;
    for (const SharedWeight& part : parts) {
      w->blocks.insert(w->blocks.end(), part->blocks.begin(), part->blocks.end());
      w->keep.push_back(part);
      w->rows += part->rows;
    }
    return w;
  }

  SharedWeight random(int rank, int64_t rows, int64_t cols, uint64_t seed, float std) override;

  std::shared_ptr<Program> prepare(const Recording& recording, const std::vector<int>& results, Keep keep) override {
    auto program = std::make_shared<CpuProgram>();
    size_t workspace = 0;
    for (const Command& c : recording.commands()) workspace = std::max(workspace, isa_.workspace(c, threads_));
    place(*program, recording, results, workspace, arena_, host_memory);
    program->keep = std::move(keep);
    return program;
  }

  void run(std::shared_ptr<Program> program) override {
    const auto& commands = program->commands[program->runs++ & 1];
    queue_.add([this, &commands, keep = std::static_pointer_cast<CpuProgram>(std::move(program))] {
      std::atomic<size_t> last{
          commands.size()};  // worker 0 lowers it when the device is closing; all see it behind the barrier
      (keep->small() ? alone_ : team_)
          .run(
              [&](Worker& w) {
                for (size_t i = 0; i < last; i++) {
                  isa_.run(commands[i], w);
                  if (w.index == 0 && queue_.closing()) last = i + 1;
                  w.barrier();
                }
              },
              keep->workspace);
    });
  }

  void copy_pages(void* data, size_t page_bytes, std::vector<int32_t> from, std::vector<int32_t> to,
                  std::shared_ptr<const void> keep) override {
    queue_.add([data, page_bytes, from = std::move(from), to = std::move(to), keep = std::move(keep)] {
      auto* base = static_cast<std::byte*>(data);
      for (size_t i = 0; i < from.size(); i++)
        std::memcpy(base + size_t(to[i]) * page_bytes, base + size_t(from[i]) * page_bytes, page_bytes);
    });
  }

  void clock(double* seconds, Done done) override {
    queue_.add([seconds] { *seconds = Queue::now(); }, std::move(done));
  }
  void measure(Ceilings* result, Done done) override;
  void measure_library(int64_t, int64_t, int64_t, LibraryRate*, Done done) override {
    queue_.add([] {}, std::move(done));
  }

  void close() override { queue_.close(); }

 private:
  const Isa& isa_;
  const int threads_;
  const DType activation_;
  Team alone_{1};  // for small programs
  Team team_;      // worker 0 is the thread of the queue
  std::weak_ptr<Buffer> arena_;
  Queue queue_{"cpu"};  // last: its thread uses all of the above
};

SharedWeight CpuDevice::random(int rank, int64_t rows, int64_t cols, uint64_t seed, float std) {
  auto memory = host_memory(size_t(rows) * size_t(cols) * 2);
  auto* data = static_cast<bf16*>(memory->data);
  const int64_t count = rows * cols;
  queue_.add([this, memory, data, count, seed, std] {
    constexpr int64_t kChunk = int64_t{1} << 20;
    const float scale = random_scale(std);
    team_.run([&](Worker& w) {
      for (int64_t begin, end; w.take(begin, end, count, kChunk);)
        for (int64_t i = begin; i < end; i++) data[i] = bf16(random_value(seed, uint64_t(i), scale));
    });
  });
  return adopt(data, rank, rows, cols, memory);
}

// The median of five, as benchmarks take medians: on a shared machine both sides of a ratio then suffer alike.
void CpuDevice::measure(Ceilings* result, Done done) {
  queue_.add(
      [this, result] {
        constexpr int64_t kFloats = int64_t{1} << 28;  // 1 GB: the largest shared caches hold a quarter
        constexpr int64_t kRounds = 2'000'000;
        const CeilingLoops loops = isa_.ceilings();
        const auto memory = host_memory(kFloats * sizeof(float));
        auto* const from = static_cast<float*>(memory->data);
        const int64_t share = kFloats / team_.size() / 2048 * 2048, used = share * team_.size();
        std::atomic<float> sink{0};  // so that no loop is removed
        const auto median = [&](auto loop) {
          std::array<double, 5> seconds{};
          for (double& t : seconds) {
            const double start = Queue::now();
            team_.run([&](Worker& w) { loop(w.index * share); });
            t = Queue::now() - start;
          }
          std::sort(seconds.begin(), seconds.end());
          return seconds[2];
        };
        median([&](int64_t begin) { std::memset(from + begin, 1, size_t(share) * sizeof(float)); });
        result->copy = double(used) * sizeof(float) /
                       median([&](int64_t begin) { loops.copy(from + begin + share / 2, from + begin, share / 2); });
        result->read = double(used) * sizeof(float) /
                       median([&](int64_t begin) { sink = sink + loops.read(from + begin, share); });
        result->flops = loops.flops_per_round * double(kRounds) * team_.size() /
                        median([&](int64_t) { sink = sink + loops.multiply(kRounds); });
      },
      std::move(done));
}

}  // namespace

std::unique_ptr<Device> open_cpu(const CpuOptions& options) { return std::make_unique<CpuDevice>(options); }

DeviceReport report_cpu() {
  return {"cpu", true, concat(choose_isa("").name, ", ", usable_threads(), " threads"), physical_memory()};
}

}  // namespace cria
