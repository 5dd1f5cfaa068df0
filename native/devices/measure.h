// measure.h - the ceilings of a GPU, timed by its own clock: medians of five, the best of a few ways.
#pragma once
#include <algorithm>
#include <array>
#include <deque>

#include "../machine/runtime.h"
#include "../ops/ceilings.h"
#include "library.h"

namespace cria::CRIA_MACHINE {

// ops/ceilings.cu. Bytes are multiples of the tile.
int64_t ceiling_tile();
void ceiling_read(void* sink, const void* from, int64_t bytes, int blocks, const Stream& stream);
void ceiling_copy(void* to, const void* from, int64_t bytes, int blocks, const Stream& stream);
void ceiling_multiply(void* sink, int rounds, int blocks, bool wgmma, const Stream& stream);
double ceiling_operations(int rounds, int blocks, bool wgmma);

// Bytes that are read: far more than any L2 cache holds, and a small part of the memory.
inline int64_t measured_bytes([[maybe_unused]] const Chip& chip) {
#ifdef CRIA_ON_GPU
  const int64_t most = std::min(int64_t{4} << 30, int64_t(chip.memory / 8));
#else
  const int64_t most = 1 << 19;
#endif
  return most / (2 * ceiling_tile()) * 2 * ceiling_tile();
}
#ifdef CRIA_ON_GPU
constexpr int kRounds = 16384, kLaunches = 4;  // milliseconds each: starting a graph takes microseconds
#else
constexpr int kRounds = 4, kLaunches = 1;
#endif

// Ways to do some work, each enqueued six times with the clock in between; the first time warms up.
class Measurement : public std::enable_shared_from_this<Measurement> {
 public:
  explicit Measurement(std::shared_ptr<Runtime> runtime, Kept kept)
      : runtime_(std::move(runtime)), kept_(std::move(kept)) {}

  // best: gets work by the second, if no other way was faster.
  void add(double* best, double work, const std::function<void()>& enqueue) {
    series_.push_back({best, work, {}});
    auto& times = series_.back().times;
    for (double& at : times) {
      if (&at != times.data()) enqueue();
      runtime_->clock(&at, [self = shared_from_this()](std::exception_ptr) {});
    }
  }
  void add_graph(double* best, double work, const std::function<void(const Stream&)>& launches) {
    const auto graph = runtime_->record([&](const Stream& stream) {
      for (int i = 0; i < kLaunches; i++) launches(stream);
    });
    add(best, work * kLaunches, [&] { runtime_->replay(graph, kept_); });
  }
  void end(Done done) {
    auto last = std::make_shared<double>();
    double* const at = last.get();
    runtime_->clock(at, [self = shared_from_this(), last, done = std::move(done)](std::exception_ptr failure) {
      if (!failure) self->evaluate();
      done(failure);
    });
  }

 private:
  struct Series {
    double* best;
    double work;
    std::array<double, 7> times;
  };
  void evaluate() {
    for (Series& s : series_) {
      std::array<double, 5> seconds{};
      for (size_t i = 0; i < seconds.size(); i++) seconds[i] = s.times[i + 2] - s.times[i + 1];
      std::sort(seconds.begin(), seconds.end());
      if (seconds[2] > 0) *s.best = std::max(*s.best, s.work / seconds[2]);
    }
  }

  const std::shared_ptr<Runtime> runtime_;
  const Kept kept_;
  std::deque<Series> series_;  // addresses of times stay
};

// memory: measured_bytes() of any values.
inline void measure_ceilings(const std::shared_ptr<Runtime>& runtime, std::byte* memory, Kept kept, Ceilings* result,
                             Done done) {
  const auto work = std::make_shared<Measurement>(runtime, kept);
  const int64_t bytes = measured_bytes(runtime->chip()), half = bytes / 2;
  for (const int per_sm : {2, 4, 16}) {
    const int blocks = runtime->chip().sms * per_sm;
    work->add_graph(&result->read, double(bytes),
                    [&](const Stream& stream) { ceiling_read(memory, memory, bytes, blocks, stream); });
    work->add_graph(&result->copy, double(bytes),
                    [&](const Stream& stream) { ceiling_copy(memory + half, memory, half, blocks, stream); });
  }
  work->add(&result->copy, double(bytes), [&] { runtime->copy(memory + half, memory, size_t(half), kept); });
  for (const int per_sm : {1, 2}) {
    const int blocks = runtime->chip().sms * per_sm;
    work->add_graph(&result->flops, ceiling_operations(kRounds, blocks, false),
                    [&](const Stream& stream) { ceiling_multiply(memory, kRounds, blocks, false, stream); });
  }
  if (runtime->chip().arch == 90) {
    const int blocks = runtime->chip().sms;
    work->add_graph(&result->flops, ceiling_operations(kRounds / 4, blocks, true),
                    [&](const Stream& stream) { ceiling_multiply(memory, kRounds / 4, blocks, true, stream); });
  }
  work->end(std::move(done));
}

// Operations a second of the library's fastest way; 0 without a library.
inline void measure_library_rate(const std::shared_ptr<Runtime>& runtime, const Product& product, Kept kept,
                                 LibraryRate* result, Done done) {
  const std::shared_ptr<LibraryProduct> library = library_product(product);
  const auto work =
      std::make_shared<Measurement>(runtime, std::make_shared<std::pair<Kept, std::shared_ptr<void>>>(kept, library));
  if (library) result->library = library->name;
  for (int way = 0; library && way < library->ways; way++)
    work->add_graph(&result->flops, 2.0 * double(product.rows) * double(product.out) * double(product.in),
                    [&](const Stream& stream) { library->launch(way, stream); });
  work->end(std::move(done));
}

}  // namespace cria::CRIA_MACHINE
