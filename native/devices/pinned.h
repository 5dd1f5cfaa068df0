// pinned.h - host memory that the GPU copies from and to, and that kernels read directly.
#pragma once
#include <cuda_runtime.h>

#include <condition_variable>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace cria::cuda {

void check(cudaError_t error, const char* what);

// Page-locked host memory in blocks of powers of two, used again and again.
class Pinned {
 public:
  using Block = std::shared_ptr<std::byte>;
  explicit Pinned(size_t most) : most_(most) {}
  ~Pinned() {
    for (auto& [size, blocks] : free_)
      for (std::byte* b : blocks) cudaFreeHost(b);
  }
  // Waits while the GPU still reads too many of them.
  Block get(size_t bytes) {
    size_t size = 4096;
    while (size < bytes) size *= 2;
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [&] { return !free_[size].empty() || used_ == 0 || used_ + size <= most_; });
    std::byte* memory = nullptr;
    if (!free_[size].empty()) {
      memory = free_[size].back();
      free_[size].pop_back();
    } else {
      void* fresh = nullptr;
      check(cudaMallocHost(&fresh, size), "page-locked host memory");
      memory = static_cast<std::byte*>(fresh);
    }
    used_ += size;
    return {memory, [this, size](std::byte* b) {
              std::lock_guard guard(mutex_);
              free_[size].push_back(b);
              used_ -= size;
              returned_.notify_all();
            }};
  }

 private:
  const size_t most_;  // bytes in use at once; one block may be larger
  std::mutex mutex_;
  std::condition_variable returned_;
  std::map<size_t, std::vector<std::byte*>> free_;
  size_t used_ = 0;
};

}  // namespace cria::cuda
