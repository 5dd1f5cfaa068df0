// machine_check_async.cc - what the asynchronous proxy does: bulk copies, TMA boxes, wgmma.
#include "../machine/ptx/mbarrier.h"
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/wgmma.h"
#include "machine_check.h"

namespace cria::simt {
namespace {

// A producer warp fills two places in turn, a consumer warp reads them: full and empty barriers.
void pipeline(int* sum, const int* in, int steps) {
  CRIA_SHARED(int, shared);  // [2][64]
  auto* const full = reinterpret_cast<uint64_t*>(shared + 128);
  auto* const empty = full + 2;
  if (threadIdx.x == 0)
    for (int i = 0; i < 2; i++) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 32);
    }
  sync_block();
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0)
      for (int s = 0; s < steps; s++) {
        if (s >= 2) mbarrier_wait(empty + s % 2, uint32_t(s / 2 - 1) % 2);
        mbarrier_arrive(full + s % 2, 256);
        bulk_copy(shared + s % 2 * 64, in + s * 64, 256, full + s % 2);
      }
  } else {
    int mine = 0;
    for (int s = 0; s < steps; s++) {
      mbarrier_wait(full + s % 2, uint32_t(s / 2) % 2);
      mine += shared[s % 2 * 64 + int(threadIdx.x) - 32] + shared[s % 2 * 64 + int(threadIdx.x)];
      mbarrier_arrive(empty + s % 2);
    }
    sum[threadIdx.x - 32] = mine;
  }
}

// Boxes of 16 rows, across the end of the matrix; out [box][16][64] with the swizzle undone.
void boxes(bf16* out, TensorMap map) {
  CRIA_SHARED(bf16, shared);  // [16][64], then the barrier
  auto* const barrier = reinterpret_cast<uint64_t*>(shared + 1024);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  sync_block();
  for (int i = 0; i < 2; i++) {
    if (threadIdx.x == 0) {
      mbarrier_arrive(barrier, 2048);
      tensor_copy<2>(shared, &map, {i * 64, i * 16}, barrier, cache_policy(Evict::first));
    }
    mbarrier_wait(barrier, uint32_t(i));
    for (unsigned at = threadIdx.x; at < 1024; at += 32) {
      out[unsigned(i) * 1024 + at] = shared[swizzled(int(at / 64), int(at % 64))];
    }
    sync_warp();
  }
}

// d[64, n] = a[64, 64] b[n, 64]^T, a as a box of five axes and b written by the threads.
template <int n>
void warpgroup(float* d, const bf16* b, TensorMap a) {
  CRIA_SHARED(bf16, shared);  // a, b, the barrier
  auto* const barrier = reinterpret_cast<uint64_t*>(shared + (64 + n) * 64);
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  for (int i = int(threadIdx.x); i < n * 64; i += 128) shared[64 * 64 + swizzled(i / 64, i % 64)] = b[i];
  publish_shared();
  sync_block();
  if (threadIdx.x == 0) {
    mbarrier_arrive(barrier, 64 * 64 * sizeof(bf16));
    tensor_copy<5>(shared, &a, {0, 0, 0, 0, 0}, barrier, cache_policy(Evict::last));
  }
  mbarrier_wait(barrier, 0);
  float sum[n / 2] = {};
  for (int k = 0; k < 64; k += 32) {
    wgmma_fence();
    for (int step = k; step < k + 32; step += 16)
      wgmma_64xnx16<n>(sum, matrix_descriptor(shared + step), matrix_descriptor(shared + 64 * 64 + step));
    wgmma_commit();
    wgmma_wait<1>();
  }
  wgmma_wait<0>();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (unsigned i = 0; i < n / 2; i++)
    d[(warp * 16 + lane / 4 + i % 4 / 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// --- Misuse

void unfenced() {
  CRIA_SHARED(bf16, shared);
  float d[4] = {};
  wgmma_64xnx16<8>(d, matrix_descriptor(shared), matrix_descriptor(shared));
}
void forgotten_product() {
  CRIA_SHARED(bf16, shared);
  float d[4] = {};
  wgmma_fence();
  wgmma_64xnx16<8>(d, matrix_descriptor(shared), matrix_descriptor(shared));
  wgmma_commit();
}

void fresh_mbarrier() {
  CRIA_SHARED(uint64_t, barrier);
  mbarrier_arrive(barrier);
}
void abandoned_copy(const int* in) {
  CRIA_SHARED(uint64_t, barrier);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_arrive(barrier, 16);
    bulk_copy(barrier + 2, in, 16, barrier);
  }
}

}  // namespace

void check_async() {
  alignas(16) static int in[256];
  for (int i = 0; i < 256; i++) in[i] = i + 1;
  std::vector<int> totals(32);
  expect(
      "bulk copies through two places, full and empty", pipeline, Shape{dim3(3), dim3(64), 1024},
      [&] {
        for (int l = 0; l < 32; l++) {
          int expected = 0;
          for (int s = 0; s < 4; s++) expected += in[s * 64 + l] + in[s * 64 + 32 + l];
          if (totals[size_t(l)] != expected) return false;
        }
        std::fill(totals.begin(), totals.end(), 0);
        return true;
      },
      totals.data(), static_cast<const int*>(in), 4);

  std::vector<bf16> matrix(20 * 72), boxed(2048);
  for (size_t i = 0; i < matrix.size(); i++) matrix[i] = bf16(float(i % 251));
  expect(
      "boxes of a matrix, swizzled, zero outside", boxes, Shape{dim3(1), dim3(32), 2056},
      [&] {
        for (unsigned i = 0; i < 2048; i++) {
          const unsigned row = i / 1024 * 16 + i % 1024 / 64, column = i / 1024 * 64 + i % 64;
          const bool inside = row < 20 && column < 72;
          if (float(boxed[i]) != (inside ? float(matrix[row * 72 + column]) : 0.0f)) return false;
        }
        return true;
      },
      boxed.data(), tensor_map<2>(matrix.data(), {72, 20}, {1, 72}, {64, 16}));

  // Rows of a: groups of 16, whose upper eight come from the lower half of the matrix.
  std::vector<bf16> first(64 * 64), second(256 * 64);
  for (size_t i = 0; i < first.size(); i++) first[i] = bf16(float(int(i * 29 % 31) - 15));
  for (size_t i = 0; i < second.size(); i++) second[i] = bf16(float(int(i * 17 % 23) - 11));
  const auto paired =
      tensor_map<5>(first.data(), {64, 8, 2, 4, 1}, {1, 64, 32 * 64, 8 * 64, 64 * 64}, {64, 8, 2, 4, 1});
  std::vector<float> product(64 * 256);
  const auto multiplied = [&](auto kernel, unsigned n) {
    expect(
        concat("wgmma 64 x ", n), kernel, Shape{dim3(1), dim3(128), (64 + n) * 128 + 8},
        [&] {
          for (unsigned m = 0; m < 64; m++)
            for (unsigned c = 0; c < n; c++) {
              const unsigned row = m / 16 * 8 + m % 8 + m / 8 % 2 * 32;
              float expected = 0;
              for (unsigned k = 0; k < 64; k++) expected += float(first[row * 64 + k]) * float(second[c * 64 + k]);
              if (std::exchange(product[m * n + c], 0.0f) != expected) return false;
            }
          return true;
        },
        product.data(), static_cast<const bf16*>(second.data()), paired);
  };
  multiplied(warpgroup<8>, 8);
  multiplied(warpgroup<256>, 256);
  refuse("wgmma without a fence", unfenced, Shape{dim3(1), dim3(128), 1024}, "without a wgmma.fence");
  refuse("wgmma that nobody waits for", forgotten_product, Shape{dim3(1), dim3(128), 1024}, "never waited for");

  const Shape two_warps{dim3(2), dim3(64), 96};
  refuse("an mbarrier that nobody made", fresh_mbarrier, two_warps, "was not initialised");
  refuse("a bulk copy that nobody waits for", abandoned_copy, two_warps, "in flight", static_cast<const int*>(in));
}

}  // namespace cria::simt
