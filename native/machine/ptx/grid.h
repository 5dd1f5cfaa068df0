// ptx/grid.h - between kernels and between blocks: programmatic dependent launch, counters in device memory.
#pragma once
#include "../simt.h"

namespace cria::CRIA_MACHINE {

// Until the kernels before this one have ended and what they wrote can be read. Nothing on GPUs before sm_90, where
// kernels start one after the other.
CRIA_DEVICE void grid_wait(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  if (machine->removed(site)) return;
  current->waited = true;
  const Launch& l = *block().launch;
  if (!l.predecessor_done)
    Machine::wait(
        "the kernel before", site, [](void* launch) { return static_cast<const Launch*>(launch)->predecessor_done; },
        const_cast<Launch*>(&l));
#endif
}

// The next kernel may start, up to its own grid_wait().
CRIA_DEVICE void grid_launch_dependents() {
#if defined(CRIA_ON_GPU) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Adds to a counter in device memory and returns what it was. Never on values that are results: order would show.
// Release and acquire: who sees this sees what the thread wrote or saw written before, through barriers too.
CRIA_DEVICE uint32_t count_up(uint32_t* counter, uint32_t by) {
#ifdef CRIA_ON_GPU
  uint32_t was;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(was) : "l"(counter), "r"(by) : "memory");
  return was;
#else
  const uint32_t was = *counter;
  *counter = was + by;
  return was;
#endif
}

}  // namespace cria::CRIA_MACHINE
