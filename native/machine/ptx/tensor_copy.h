// ptx/tensor_copy.h - TMA: boxes of a matrix in device memory to shared memory, as one instruction. PTX ISA 9.7.9.25.5.
//
// A box is [box_rows, 64] bf16: 128 bytes a row, and its 16-byte chunks are swapped by the number of the row (128-byte
// swizzle), as wgmma wants them: chunk c of row r lies at r * 8 + (c ^ r % 8). What lies outside of the matrix is zero.
#pragma once
#ifdef __CUDACC__
#include <cuda.h>
#endif

#include "mbarrier.h"

namespace cria::CRIA_MACHINE {

constexpr int kBoxColumns = 64;

#ifdef CRIA_ON_GPU
using TensorMap = CUtensorMap;  // a kernel argument: const __grid_constant__
#else
struct TensorMap {
  const bf16* data;
  int64_t rows, cols;  // row-major, cols a multiple of 8
  int box_rows;
};
#endif

// The map of a matrix [rows, cols] and of the boxes that are copied from it, box_rows of at most 256.
inline TensorMap tensor_map(const bf16* data, int64_t rows, int64_t cols, int box_rows) {
#ifdef CRIA_ON_GPU
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) check(cudaErrorSymbolNotFound, "cuTensorMapEncodeTiled");
  TensorMap map{};
  const cuuint64_t sizes[2] = {cuuint64_t(cols), cuuint64_t(rows)}, strides[1] = {cuuint64_t(cols) * sizeof(bf16)};
  const cuuint32_t box[2] = {kBoxColumns, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) check(cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
  return map;
#else
  return {data, rows, cols, box_rows};
#endif
}

// Copies the box at (row, column); shared is a multiple of 1024 bytes. All bytes of the box count at the mbarrier, also
// those outside of the matrix.
CRIA_DEVICE void tensor_copy(void* shared, const TensorMap* map, int column, int row, uint64_t* barrier CRIA_AT) {
#ifdef CRIA_ON_GPU
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          uint32_t(__cvta_generic_to_shared(shared))),
      "l"(map), "r"(column), "r"(row), "r"(uint32_t(__cvta_generic_to_shared(barrier)))
      : "memory");
#else
  if (reinterpret_cast<uintptr_t>(shared) % 1024)
    misuse("a tensor copy to an address that is not a multiple of 1024", site);
  const TensorMap from = *map;
  const auto bytes = uint32_t(from.box_rows * kBoxColumns) * uint32_t(sizeof(bf16));
  auto* const to = static_cast<bf16*>(shared);
  copy_in_flight(shared, bytes, barrier, site, [=] {
    for (int r = 0; r < from.box_rows; r++)
      for (int c = 0; c < kBoxColumns; c++) {
        const int64_t y = int64_t{row} + r, x = int64_t{column} + c;
        const bool inside = y >= 0 && y < from.rows && x >= 0 && x < from.cols;
        to[r * kBoxColumns + ((c / 8) ^ (r % 8)) * 8 + c % 8] = inside ? from.data[y * from.cols + x] : bf16(0.0f);
      }
  });
#endif
}

}  // namespace cria::CRIA_MACHINE
