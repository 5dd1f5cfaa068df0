// ptx/warp.h - values that travel between the lanes of a warp. PTX ISA 9.7.9 (shfl.sync, vote.sync, redux.sync).
#pragma once
#include "../simt.h"

namespace cria::CRIA_MACHINE {

#ifndef CRIA_ON_GPU
// Each lane gets the value of its lane `from`, or keeps its own where the mask does not name that one.
template <class T>
T exchange(uint32_t mask, T value, unsigned from, Site site) {
  struct Operand {
    T value, result;
    unsigned from;
  } mine{value, value, from};
  collective(mask, mine, "shfl.sync", site, [&](Operand* const* lanes) {
    for (unsigned l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      const unsigned other = lanes[l]->from % 32;
      if (mask >> other & 1) lanes[l]->result = lanes[other]->value;
    }
  });
  return mine.result;
}
#endif

// The value of lane (own lane ^ bits).
template <class T>
CRIA_DEVICE T shuffle_xor(uint32_t mask, T value, unsigned bits CRIA_AT) {
#ifdef CRIA_ON_GPU
  return __shfl_xor_sync(mask, value, int(bits));
#else
  return exchange(mask, value, current->lane ^ bits, site);
#endif
}

// The value of lane `from`.
template <class T>
CRIA_DEVICE T shuffle(uint32_t mask, T value, unsigned from CRIA_AT) {
#ifdef CRIA_ON_GPU
  return __shfl_sync(mask, value, int(from));
#else
  return exchange(mask, value, from, site);
#endif
}

// Bit l: whether lane l says true.
CRIA_DEVICE uint32_t ballot(uint32_t mask, bool value CRIA_AT) {
#ifdef CRIA_ON_GPU
  return __ballot_sync(mask, value);
#else
  struct Operand {
    bool value;
    uint32_t result;
  } mine{value, 0};
  collective(mask, mine, "vote.sync", site, [&](Operand* const* lanes) {
    uint32_t bits = 0;
    for (unsigned l = 0; l < 32; l++)
      if (mask >> l & 1 && lanes[l]->value) bits |= 1u << l;
    for (unsigned l = 0; l < 32; l++)
      if (mask >> l & 1) lanes[l]->result = bits;
  });
  return mine.result;
#endif
}

// The largest of the lanes' values.
CRIA_DEVICE uint32_t reduce_max(uint32_t mask, uint32_t value CRIA_AT) {
#ifdef CRIA_ON_GPU
  return __reduce_max_sync(mask, value);
#else
  struct Operand {
    uint32_t value;
  } mine{value};
  collective(mask, mine, "redux.sync", site, [&](Operand* const* lanes) {
    uint32_t most = 0;
    for (unsigned l = 0; l < 32; l++)
      if (mask >> l & 1 && lanes[l]->value > most) most = lanes[l]->value;
    for (unsigned l = 0; l < 32; l++)
      if (mask >> l & 1) lanes[l]->value = most;
  });
  return mine.value;
#endif
}

}  // namespace cria::CRIA_MACHINE
