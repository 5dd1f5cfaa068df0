// ptx/cp_async.h - copies from device to shared memory that do not pass through registers. PTX ISA 9.7.9.25.3.
#pragma once
#include "../simt.h"

namespace cria::CRIA_MACHINE {

// 16 bytes, both addresses multiples of 16. Where `valid` is false nothing is read and zeros are written.
CRIA_DEVICE void copy_async_16(void* shared, const void* from, bool valid CRIA_AT) {
#ifdef CRIA_ON_GPU
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#else
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    misuse("cp.async: an address is not a multiple of 16", site);
  if (!valid && machine->removed(site)) valid = true;
  const Thread::Copy copy{shared, from, 16, valid ? 16 : 0};
  if (machine->options().late) {
    std::memset(shared, 0xff, 16);  // undefined until it has landed
    current->groups.back().push_back(copy);
  } else {
    std::memset(shared, 0, 16);
    std::memcpy(shared, from, size_t(copy.valid));
    current->groups.back().push_back({nullptr, nullptr, 0, 0});
  }
#endif
}

CRIA_DEVICE void copy_async_commit() {
#ifdef CRIA_ON_GPU
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  current->groups.emplace_back();
#endif
}

// Until at most `pending` of this thread's newest groups are in flight.
template <int pending>
CRIA_DEVICE void copy_async_wait(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  if (machine->removed(site)) return;
  auto& groups = current->groups;
  while (int(groups.size()) - 1 > pending) {
    for (const auto& c : groups.front())
      if (c.to) {
        std::memset(c.to, 0, size_t(c.bytes));
        std::memcpy(c.to, c.from, size_t(c.valid));
      }
    groups.erase(groups.begin());
  }
#endif
}

}  // namespace cria::CRIA_MACHINE
