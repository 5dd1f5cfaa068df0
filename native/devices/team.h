// team.h - the CPU's threads. run(f) calls f(worker) on every one of them and returns when all are done.
#pragma once
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "../ops/worker.h"

namespace cria {

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // The calling thread is worker 0. `scratch` is handed to every worker.
  void run(const std::function<void(Worker&)>& f, std::byte* scratch = nullptr);

 private:
  void loop(int index);
  Worker worker(int index, std::byte* scratch);
  static void barrier(void* team, Worker&);
  void arrive();

  const int size_;
  alignas(64) std::atomic<int64_t> next_{0};      // dealt by Worker::take
  alignas(64) std::atomic<uint32_t> arrived_{0};  // workers at the barrier
  alignas(64) std::atomic<uint32_t> phase_{0};    // barriers passed
  alignas(64) std::atomic<uint32_t> job_{0};      // calls of run
  const std::function<void(Worker&)>* f_ = nullptr;
  std::byte* scratch_ = nullptr;
  std::atomic<bool> ending_{false};
  std::vector<std::thread> threads_;
};

}  // namespace cria
