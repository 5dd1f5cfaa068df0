// tile/arrive.h - blocks that share a piece of work: who is the last to finish his part?
#pragma once
#include "../ptx/grid.h"

namespace cria::CRIA_MACHINE {

// True in the last of `parts` blocks, for all of its threads, and then everything that the others wrote to device
// memory before can be read. The counter is zero again afterwards. flag: in shared memory, nobody else's until the next
// barrier.
CRIA_DEVICE bool last_to_arrive(uint32_t* counter, uint32_t parts, uint32_t* flag) {
  sync_block();
  if (threadIdx.x == 0) *flag = count_up(counter, 1) + 1 != parts;
  sync_block();
  const bool last = *flag == 0;
  if (last && threadIdx.x == 0) *counter = 0;
  return last;
}

}  // namespace cria::CRIA_MACHINE
