// ptx/mbarrier.h - barriers in shared memory that count arrivals of threads and bytes of asynchronous copies, and the
// bulk copies that complete on them. PTX ISA 9.7.13.15 (mbarrier), 9.7.9.25.4 (cp.async.bulk). sm_90 on.
//
// A barrier has a phase, 0 at first. A phase completes when `count` threads have arrived and all bytes that they
// expected have come; then the next one begins. Who waits names the parity of the phase that it wants completed.
#pragma once
#include "../simt.h"

namespace cria::CRIA_MACHINE {

#ifndef CRIA_ON_GPU
struct MbarrierState {
  static constexpr uint32_t kMagic = 0x2a;
  int32_t bytes;  // expected and not there yet; copies may come before they are expected
  uint32_t count : 12, pending : 12, phase : 1, magic : 7;

  static MbarrierState of(const uint64_t* barrier, Site site) {
    MbarrierState s;
    std::memcpy(static_cast<void*>(&s), barrier, sizeof s);
    if (s.magic != kMagic) misuse("an mbarrier that was not initialised", site);
    return s;
  }
  void keep(uint64_t* barrier) {
    if (pending == 0 && bytes == 0) {
      phase ^= 1u;
      pending = count;
    }
    std::memcpy(barrier, this, sizeof *this);
  }
};
static_assert(sizeof(MbarrierState) == 8);

// An asynchronous copy to shared memory: it lands now, or when somebody waits for it. Undefined until then.
template <class Fill>
void copy_in_flight(void* shared, uint32_t bytes, uint64_t* barrier, Site site, Fill fill) {
  MbarrierState::of(barrier, site);
  std::memset(shared, 0xff, bytes);
  unsigned char* const seen = block().async_view() + (static_cast<unsigned char*>(shared) - block().shared);
  std::memset(seen, 0xff, bytes);
  const auto land = [=] {
    fill();
    std::memcpy(seen, shared, bytes);
    MbarrierState s = MbarrierState::of(barrier, site);
    s.bytes -= int32_t(bytes);
    s.keep(barrier);
  };
  if (machine->options().late)
    block().flights.push_back({barrier, bytes, land});
  else
    land();
}

struct MbarrierWait {
  uint64_t* barrier;
  uint32_t parity;
  Block* block;
  Site site;

  bool over() const {
    MbarrierState s = MbarrierState::of(barrier, site);
    // The last legal moment: every thread has arrived, and somebody waits.
    if (s.phase == parity && s.pending == 0) {
      for (size_t i = 0; i < block->flights.size();)
        if (block->flights[i].barrier == barrier) {
          const auto land = std::move(block->flights[i].land);
          block->flights.erase(block->flights.begin() + std::ptrdiff_t(i));
          land();
        } else {
          i++;
        }
      s = MbarrierState::of(barrier, site);
    }
    return s.phase != parity;
  }
};
#endif

// count: arrivals of a phase. One thread does it; the others, and copies, may use it after a barrier of the block.
CRIA_DEVICE void mbarrier_init(uint64_t* barrier, uint32_t count) {
#ifdef CRIA_ON_GPU
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(uint32_t(__cvta_generic_to_shared(barrier))), "r"(count)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  MbarrierState s{};
  s.magic = MbarrierState::kMagic;
  s.count = s.pending = count & 0xfff;
  std::memcpy(barrier, &s, sizeof s);
#endif
}

// One arrival, which announces bytes of copies to this phase. What the thread wrote can be read by who waits.
CRIA_DEVICE void mbarrier_arrive(uint64_t* barrier, uint32_t bytes = 0 CRIA_AT) {
#ifdef CRIA_ON_GPU
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   uint32_t(__cvta_generic_to_shared(barrier))),
               "r"(bytes)
               : "memory");
#else
  if (machine->removed(site)) return;
  MbarrierState s = MbarrierState::of(barrier, site);
  if (s.pending == 0) misuse("more arrivals at an mbarrier than its phase has", site);
  s.bytes += int32_t(bytes);
  s.pending--;
  s.keep(barrier);
#endif
}

// Until the phase of this parity has completed.
CRIA_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity CRIA_AT) {
#ifdef CRIA_ON_GPU
  const auto at = uint32_t(__cvta_generic_to_shared(barrier));
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, "
        "p;\n}"
        : "=r"(done)
        : "r"(at), "r"(parity)
        : "memory");
#else
  if (machine->removed(site)) return;
  MbarrierWait wait{barrier, parity, &block(), site};
  if (!wait.over())
    Machine::wait("an mbarrier", site, [](void* w) { return static_cast<const MbarrierWait*>(w)->over(); }, &wait);
#endif
}

// Copies bytes, a multiple of 16, from device to shared memory; both addresses are multiples of 16. They count at the
// mbarrier when they are there.
CRIA_DEVICE void bulk_copy(void* shared, const void* from, uint32_t bytes, uint64_t* barrier CRIA_AT) {
#ifdef CRIA_ON_GPU
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   uint32_t(__cvta_generic_to_shared(shared))),
               "l"(from), "r"(bytes), "r"(uint32_t(__cvta_generic_to_shared(barrier)))
               : "memory");
#else
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16)
    misuse("cp.async.bulk: an address or the size is not a multiple of 16", site);
  copy_in_flight(shared, bytes, barrier, site, [=] { std::memcpy(shared, from, bytes); });
#endif
}

}  // namespace cria::CRIA_MACHINE
