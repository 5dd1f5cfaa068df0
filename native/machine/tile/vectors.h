// tile/vectors.h - 16 bytes at a time between memory and registers.
#pragma once
#include "../simt.h"

namespace cria::CRIA_MACHINE {

// Values that are loaded and stored together. The address is a multiple of their size, 16 bytes at most.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T at[n];
};
using Bf16x8 = Pack<bf16, 8>;
using F32x4 = Pack<float, 4>;

template <class P, class T>
CRIA_DEVICE P load(const T* from) {
  return *reinterpret_cast<const P*>(from);
}
template <class P, class T>
CRIA_DEVICE void store(T* to, const P& pack) {
  *reinterpret_cast<P*>(to) = pack;
}

}  // namespace cria::CRIA_MACHINE
