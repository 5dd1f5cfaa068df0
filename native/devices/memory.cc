// memory.cc - large buffers come from mmap: untouched pages cost nothing, so a cache for a full context is free until
// used.
#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <new>

namespace cria {
namespace {

constexpr size_t kHuge = size_t{2} << 20;  // a huge page

struct Small : Buffer {
  explicit Small(size_t n) {
    bytes = n;
    data = ::operator new(n, std::align_val_t{256});
    std::memset(data, 0, n);
  }
  ~Small() override { ::operator delete(data, std::align_val_t{256}); }
};

struct Mapped : Buffer {
  size_t mapped;
  explicit Mapped(size_t n) : mapped((n + kHuge - 1) / kHuge * kHuge) {
    void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("ERR_OUT_OF_MEMORY", "cpu: no ", n, " bytes of memory to be had from the system");
    madvise(p, mapped, MADV_HUGEPAGE);
    data = p;
    bytes = n;
  }
  ~Mapped() override { munmap(data, mapped); }
};

}  // namespace

double physical_memory() {
  double bytes = double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE));
  for (const char* file : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    double limit = 0;
    if (std::ifstream(file) >> limit && limit > 0 && limit < bytes) bytes = limit;
  }
  return bytes;
}

std::shared_ptr<Buffer> host_memory(size_t bytes) {
  if (double(bytes) > physical_memory())
    fail("ERR_OUT_OF_MEMORY", "cpu: ", bytes, " bytes asked for, but this machine has ", uint64_t(physical_memory()),
         "; a shorter context, fewer sequences or a smaller model need less");
  if (bytes >= kHuge) return std::make_shared<Mapped>(bytes);
  return std::make_shared<Small>(bytes ? bytes : 1);
}

}  // namespace cria
