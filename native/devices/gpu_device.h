// gpu_device.h - Device over a Runtime: the same host code for cuda.cu and simt.cc.
#pragma once
#include <algorithm>
#include <mutex>

#include "../core/random.h"
#include "../machine/runtime.h"
#include "../ops/fuse.h"
#include "device.h"
#include "measure.h"

namespace cria::CRIA_MACHINE {

#define CRIA_DECLARE(Op)                    \
  size_t workspace(const Op&, const Chip&); \
  void run(const Op&, const Gpu&);          \
  void supports(const Op&);
CRIA_OPS(CRIA_DECLARE)
#undef CRIA_DECLARE

namespace {
__global__ void random_kernel(bf16* to, int64_t count, uint64_t seed, float scale) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = bf16(random_value(seed, uint64_t(i), scale));
}

__global__ void write_at_kernel(uint32_t* to, const Placed* elements, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const Placed e = elements[i];
    to[e.at] = e.value;
  }
}
}  // namespace

class GpuDevice final : public Device {
 public:
  // fuses: neighbouring ops become one kernel where there is one for both.
  GpuDevice(std::string name, std::shared_ptr<Runtime> runtime, bool fuses)
      : name_(std::move(name)),
        runtime_(std::move(runtime)),
        fuses_(fuses),
        counters_(allocate(kCounters * sizeof(uint32_t))) {}
  ~GpuDevice() override { close(); }

  std::string name() const override { return name_; }
  std::string description() const override { return concat(name_, " (", runtime_->chip().name, ")"); }
  DType activation() const override { return DType::bf16; }
  std::shared_ptr<Buffer> allocate(size_t bytes) override { return std::make_shared<Memory>(runtime_, bytes, true); }

  double free_memory() const override { return runtime_->free_memory(); }

  void write(void* to, Kept keep, const void* from, size_t bytes) override {
    runtime_->write(to, from, bytes, std::move(keep));
  }
  void write_at(void* to, Kept keep, std::vector<Placed> elements) override {
    const auto count = int64_t(elements.size());
    if (count == 0) return;
    const auto start = [this, to, count](const Stream& stream, const void* from) {
      launch(write_at_kernel, "write", Shape{dim3(blocks_for(count)), dim3(kThreads)}, stream,
             static_cast<uint32_t*>(to), static_cast<const Placed*>(from), count);
    };
    runtime_->launch_with(elements.data(), elements.size() * sizeof(Placed), start, std::move(keep));
  }
  void read(const void* from, Kept keep, void* into, size_t bytes, Done done) override {
    runtime_->read(into, from, bytes, std::move(keep), std::move(done));
  }

  // Weights stay in the file until they are looked at: parts of a stack never lie in the device's memory alone.
  SharedWeight adopt(const bf16* data, int rank, int64_t rows, int64_t cols, Kept owner) override {
    return std::make_shared<Uploaded>(runtime_, std::vector<Part>{{data, rows, std::move(owner)}}, rank, cols);
  }
  SharedWeight stack(const std::vector<SharedWeight>& parts) override {
    std::vector<Part> all;
    for (const SharedWeight& w : parts) {
      const auto* uploaded = dynamic_cast<const Uploaded*>(w.get());
      if (uploaded) {
        all.insert(all.end(), uploaded->parts.begin(), uploaded->parts.end());
      } else {
        for (const RowBlock& block : w->blocks) all.push_back({block.data, block.rows, w, true});
      }
    }
    return std::make_shared<Uploaded>(runtime_, std::move(all), 2, parts.front()->cols);
  }
  SharedWeight random(int rank, int64_t rows, int64_t cols, uint64_t seed, float std) override {
    auto w = std::make_shared<WeightBlocks>();
    const auto memory = std::make_shared<Memory>(runtime_, size_t(rows * cols) * sizeof(bf16), false);
    auto* data = static_cast<bf16*>(memory->data);
    w->blocks = {{data, rows}};
    w->rank = rank;
    w->rows = rows;
    w->cols = cols;
    w->keep = {memory};
    const int64_t count = rows * cols;
    runtime_->replay(runtime_->record([&](const Stream& stream) {
      launch(random_kernel, "random", Shape{dim3(blocks_for(count)), dim3(kThreads)}, stream, data, count, seed,
             random_scale(std));
    }),
                     memory);
    return w;
  }

  std::shared_ptr<Program> prepare(const Recording& recording, const std::vector<int>& results, Keep keep) override {
    if (!fuses_) return build(recording, results, std::move(keep));
    const Fused fused = fuse(recording, results);
    return build(fused.recording, fused.results, std::move(keep));
  }
  std::shared_ptr<Program> build(const Recording& recording, const std::vector<int>& results, Keep keep) {
    size_t workspace_bytes = 0;
    for (const Command& command : recording.commands())
      std::visit(
          [&](const auto& op) {
            supports(op);
            workspace_bytes = std::max(workspace_bytes, workspace(op, runtime_->chip()));
          },
          command);
    auto program = std::make_shared<Recorded>();
    place(*program, recording, results, workspace_bytes, arena_,
          [&](size_t bytes) { return std::make_shared<Memory>(runtime_, bytes, false); });
    program->keep = std::move(keep);
    for (size_t i = 0; i < 2; i++)
      program->graphs[i] = runtime_->record([&](const Stream& stream) {
        const Gpu gpu{stream, &runtime_->chip(), program->workspace, static_cast<uint32_t*>(counters_->data)};
        for (const Command& command : program->commands[i])
          std::visit([&](const auto& op) { CRIA_MACHINE::run(op, gpu); }, command);
      });
    return program;
  }
  void run(std::shared_ptr<Program> program) override {
    const auto& recorded = static_cast<const Recorded&>(*program);
    const auto graph = recorded.graphs[program->runs++ & 1];
    runtime_->forget(program->arena->data, program->values_bytes + program->workspace_bytes, program);
    runtime_->replay(graph, std::move(program));
  }

  void copy_pages(void* data, size_t page_bytes, std::vector<int32_t> from, std::vector<int32_t> to,
                  Kept keep) override {
    auto* base = static_cast<std::byte*>(data);
    for (size_t i = 0; i < from.size(); i++)
      runtime_->copy(base + size_t(to[i]) * page_bytes, base + size_t(from[i]) * page_bytes, page_bytes, keep);
  }
  void clock(double* seconds, Done done) override { runtime_->clock(seconds, std::move(done)); }
  void measure(Ceilings* result, Done done) override {
    const SharedWeight memory = random(2, 1, measured_bytes(runtime_->chip()) / int64_t{sizeof(bf16)}, 1, 1);
    auto* const data = reinterpret_cast<std::byte*>(const_cast<bf16*>(memory->blocks[0].data));
    measure_ceilings(runtime_, data, memory, result, std::move(done));
  }
  void measure_library(int64_t rows, int64_t out, int64_t in, LibraryRate* result, Done done) override {
    const SharedWeight x = random(2, rows, in, 1, 1), w = random(2, out, in, 2, 0.02f), y = random(2, rows, out, 3, 1);
    const Product product{x->blocks[0].data, w->blocks[0].data, const_cast<bf16*>(y->blocks[0].data), rows, out, in};
    measure_library_rate(runtime_, product, std::make_shared<std::array<SharedWeight, 3>>(std::array{x, w, y}), result,
                         std::move(done));
  }
  void close() override { runtime_->close(); }

 private:
  static constexpr unsigned kThreads = 256;
  // For a loop over so many elements.
  unsigned blocks_for(int64_t count) const {
    return unsigned(std::min((count + kThreads - 1) / kThreads, int64_t{runtime_->chip().sms} * 16));
  }
  struct Memory final : Buffer {
    std::shared_ptr<Runtime> runtime;
    Memory(std::shared_ptr<Runtime> r, size_t n, bool zero) : runtime(std::move(r)) {
      bytes = n;
      data = runtime->allocate(n ? n : 1, zero);
    }
    ~Memory() override { runtime->release(data); }
  };
  struct Part {
    const bf16* data;
    int64_t rows;
    Kept owner;
    bool on_device = false;
  };
  struct Uploaded final : WeightBlocks {
    std::vector<Part> parts;
    std::shared_ptr<Runtime> runtime;
    mutable std::shared_ptr<Memory> memory;
    mutable RowBlock block;
    Uploaded(std::shared_ptr<Runtime> r, std::vector<Part> p, int rank_, int64_t cols_)
        : parts(std::move(p)), runtime(std::move(r)) {
      rank = rank_;
      cols = cols_;
      for (const Part& part : parts) rows += part.rows;
    }
    Weight view() const override {
      if (!memory) {
        const size_t row = size_t(cols) * sizeof(bf16);
        auto fresh = std::make_shared<Memory>(runtime, size_t(rows) * row, false);
        auto* to = static_cast<std::byte*>(fresh->data);
        for (const Part& part : parts) {
          const size_t size = size_t(part.rows) * row;
          if (part.on_device)
            runtime->copy(to, part.data, size, part.owner);
          else
            runtime->upload(to, part.data, size, part.owner);
          to += size;
        }
        memory = std::move(fresh);
        block = {static_cast<const bf16*>(memory->data), rows};
      }
      return {&block, 1, rank, rows, cols};
    }
  };
  struct Recorded final : Program {
    std::shared_ptr<Graph> graphs[2];
    std::vector<KernelLaunch> launches() const override {
      std::vector<KernelLaunch> all;
      for (const Launched& l : graphs[0]->launched)
        all.push_back({l.kernel, {l.grid.x, l.grid.y, l.grid.z}, {l.block.x, l.block.y, l.block.z}, l.shared});
      return all;
    }
  };

  const std::string name_;
  const std::shared_ptr<Runtime> runtime_;
  const bool fuses_;
  const std::shared_ptr<Buffer> counters_;
  std::weak_ptr<Buffer> arena_;
};

}  // namespace cria::CRIA_MACHINE
