// tile/arrive.h - blocks that share a piece of work: who is the last to finish his part?
#pragma once
#include "../ptx/grid.h"

namespace cria::CRIA_MACHINE {

struct WholeBlock {
  CRIA_DEVICE void operator()() const { sync_block(); }
};

// True in the last of `parts` blocks, for all of its threads, and then everything that the others wrote to device
// memory before can be read. The counter is zero again afterwards. flag: in shared memory, nobody else's until the next
// barrier. sync: a barrier of the threads that call this, thread 0 among them.
template <class Sync = WholeBlock>
CRIA_DEVICE bool last_to_arrive(uint32_t* counter, uint32_t parts, uint32_t* flag, Sync sync = {}) {
  sync();
  if (threadIdx.x == 0) *flag = count_up(counter, 1) + 1 != parts;
  sync();
  const bool last = *flag == 0;
  if (last && threadIdx.x == 0) *counter = 0;
  return last;
}

}  // namespace cria::CRIA_MACHINE
