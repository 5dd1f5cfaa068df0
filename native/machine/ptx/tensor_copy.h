// ptx/tensor_copy.h - TMA: boxes of a tensor in device memory to shared memory, as one instruction. PTX ISA 9.7.9.25.5.
//
// A box is 64 bf16 along the innermost axis, which is 128 bytes, and some rows, the other axes taken together. Its
// 16-byte chunks are swapped by the number of the row (128-byte swizzle), as wgmma wants them: swizzled() below, where
// row 0 lies at a multiple of 1024 bytes; a box may begin at any row. What lies outside of the tensor is zero.
#pragma once
#ifdef __CUDACC__
#include <cuda.h>
#endif

#include "mbarrier.h"

namespace cria::CRIA_MACHINE {

constexpr int kBoxColumns = 64;

// Where the element at (row, column) of a box lies.
constexpr int swizzled(int row, int column) { return row * kBoxColumns + ((column / 8) ^ (row % 8)) * 8 + column % 8; }

#ifdef CRIA_ON_GPU
using TensorMap = CUtensorMap;  // a kernel argument: const __grid_constant__
#else
struct TensorMap {
  const bf16* data;
  int rank;
  int64_t sizes[5], strides[5];  // in elements, the innermost axis first
  int box[5];
};
#endif

// A tensor and the boxes that are copied from it, innermost axis first. sizes and strides: elements, multiples of 8;
// the innermost stride is 1. box[0] is kBoxColumns, no side is over 256.
template <int rank>
inline TensorMap tensor_map(const bf16* data, const int64_t (&sizes)[rank], const int64_t (&strides)[rank],
                            const int (&box)[rank]) {
  TensorMap map{};
#ifdef CRIA_ON_GPU
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) check(cudaErrorSymbolNotFound, "cuTensorMapEncodeTiled");
  cuuint64_t size[rank], stride[rank];  // bytes; there is none for the innermost axis
  cuuint32_t side[rank], step[rank];
  for (int i = 0; i < rank; i++) {
    size[i] = cuuint64_t(sizes[i]);
    side[i] = cuuint32_t(box[i]);
    step[i] = 1;
    if (i > 0) stride[i - 1] = cuuint64_t(strides[i]) * sizeof(bf16);
  }
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<bf16*>(data), size, stride, side, step,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) check(cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
#else
  map.data = data;
  map.rank = rank;
  for (int i = 0; i < rank; i++) {
    map.sizes[i] = sizes[i];
    map.strides[i] = strides[i];
    map.box[i] = box[i];
  }
#endif
  return map;
}

// What shall happen in L2 to data that has been read: first to go, or last.
enum class Evict { first, last };
CRIA_DEVICE uint64_t cache_policy([[maybe_unused]] Evict evict) {
  uint64_t policy = 0;
#if defined(CRIA_ON_GPU) && __CUDA_ARCH__ >= 800
  if (evict == Evict::first)
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  else
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

// Copies the box at these coordinates; shared is a multiple of 128 bytes. All bytes of the box count at the mbarrier,
// also those outside of the tensor. sm_90 on.
template <int rank>
CRIA_DEVICE void tensor_copy(void* shared, const TensorMap* map, const int (&at)[rank], uint64_t* barrier,
                             [[maybe_unused]] uint64_t policy CRIA_AT) {
#ifdef CRIA_ON_GPU
  static_assert(rank == 2 || rank == 5);
  const auto to = uint32_t(__cvta_generic_to_shared(shared)), done = uint32_t(__cvta_generic_to_shared(barrier));
  if constexpr (rank == 2)
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
        "%3}], [%4], %5;" ::"r"(to),
        "l"(map), "r"(at[0]), "r"(at[1]), "r"(done), "l"(policy)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, "
        "%3, %4, %5, %6}], [%7], %8;" ::"r"(to),
        "l"(map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(done), "l"(policy)
        : "memory");
#else
  if (reinterpret_cast<uintptr_t>(shared) % 128)
    misuse("a tensor copy to an address that is not a multiple of 128", site);
  if (map->rank != rank) misuse("a tensor copy with coordinates of another rank", site);
  const TensorMap from = *map;
  std::array<int, 5> first{};
  int rows = 1;
  for (int i = 0; i < rank; i++) {
    first[size_t(i)] = at[i];
    if (i > 0) rows *= from.box[i];
  }
  const auto rows_before = int(reinterpret_cast<uintptr_t>(shared) / 128 % 8);  // since a multiple of 1024 bytes
  auto* const to = static_cast<bf16*>(shared) - rows_before * kBoxColumns;
  const auto fill = [=] {
    for (int row = 0; row < rows; row++) {
      bool exists = true;
      int64_t place = 0;
      for (int i = 1, rest = row; i < rank; rest /= from.box[i++]) {
        const int64_t x = int64_t{first[size_t(i)]} + rest % from.box[i];
        exists = exists && x >= 0 && x < from.sizes[i];
        place += x * from.strides[i];
      }
      for (int c = 0; c < kBoxColumns; c++) {
        const int64_t x = int64_t{first[0]} + c;
        const bool inside = exists && x >= 0 && x < from.sizes[0];
        to[swizzled(rows_before + row, c)] = inside ? from.data[place + x] : bf16(0.0f);
      }
    }
  };
  copy_in_flight(shared, uint32_t(rows * kBoxColumns) * uint32_t(sizeof(bf16)), barrier, site, fill);
#endif
}

// The box comes into L2, and nobody waits for it.
template <int rank>
CRIA_DEVICE void tensor_prefetch([[maybe_unused]] const TensorMap* map, [[maybe_unused]] const int (&at)[rank]) {
  static_assert(rank == 2 || rank == 5);
#if defined(CRIA_ON_GPU) && __CUDA_ARCH__ >= 900
  if constexpr (rank == 2)
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(at[0]), "r"(at[1])
                 : "memory");
  else
    asm volatile("cp.async.bulk.prefetch.tensor.5d.L2.global [%0, {%1, %2, %3, %4, %5}];" ::"l"(map), "r"(at[0]),
                 "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
                 : "memory");
#endif
}

// The descriptor of a map comes into the cache before it is needed.
CRIA_DEVICE void prefetch_map([[maybe_unused]] const TensorMap* map) {
#if defined(CRIA_ON_GPU) && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

}  // namespace cria::CRIA_MACHINE
