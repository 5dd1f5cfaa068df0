// tile/reduce.h - one value from the values of many threads, in an order that never changes.
#pragma once
#include "../ptx/warp.h"

namespace cria::CRIA_MACHINE {

// op(a, b) of all lanes, as a tree over the lane numbers; every lane gets it. `lanes` neighbours, a power of two.
template <class T, class Op>
CRIA_DEVICE T reduce_warp(T value, Op op, unsigned lanes = 32) {
  for (unsigned bits = lanes / 2; bits > 0; bits /= 2) {
    const T other = shuffle_xor(kAllLanes, value, bits);
    value = op(value, other);
  }
  return value;
}

// The same for the whole block, warp by warp in their order. shared: one T per warp. It may be used again only after
// another barrier.
template <class T, class Op>
CRIA_DEVICE T reduce_block(T value, Op op, T* shared) {
  value = reduce_warp(value, op);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  sync_block();
  T all = shared[0];
  for (unsigned w = 1; w < blockDim.x / 32; w++) all = op(all, shared[w]);
  return all;
}

struct Sum {
  template <class T>
  CRIA_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  CRIA_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
  CRIA_DEVICE float operator()(float a, float b) const {  // the other one, if one is NaN
#ifdef CRIA_ON_GPU
    return fmaxf(a, b);
#else
    return __builtin_fmaxf(a, b);
#endif
  }
};

}  // namespace cria::CRIA_MACHINE
