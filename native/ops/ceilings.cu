// ceilings.cu - the most that memory and matrix units of a GPU give, from kernels that do nothing else.
#include "../machine/gpu.h"
#include "../machine/ptx/wgmma.h"
#include "../machine/tile/vectors.h"
#include "ceilings.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kThreads = 512;
constexpr int kInFlight = 8;  // loads of 16 bytes that a thread has under way
constexpr int64_t kTile = int64_t{kThreads} * kInFlight * 4;

using U32x4 = Pack<uint32_t, 4>;

// Tiles of kTile words, block by block. With a sum so that no load is superfluous; it is stored if it is one in 2^32.
__global__ void __launch_bounds__(kThreads) read_kernel(uint32_t* sink, const uint32_t* from, int64_t words) {
  uint32_t all = 0;
  for (int64_t tile = blockIdx.x * kTile; tile < words; tile += gridDim.x * kTile) {
    U32x4 v[kInFlight];
    CRIA_UNROLL
    for (int i = 0; i < kInFlight; i++) v[i] = load<U32x4>(from + tile + (i * kThreads + int64_t{threadIdx.x}) * 4);
    CRIA_UNROLL
    for (int i = 0; i < kInFlight; i++) all += v[i].at[0] ^ v[i].at[1] ^ v[i].at[2] ^ v[i].at[3];
  }
  if (all == 0x9e3779b9u) *sink = all;
}

__global__ void __launch_bounds__(kThreads) copy_kernel(uint32_t* to, const uint32_t* from, int64_t words) {
  for (int64_t tile = blockIdx.x * kTile; tile < words; tile += gridDim.x * kTile) {
    const int64_t at = tile + int64_t{threadIdx.x} * 4;
    U32x4 v[kInFlight];
    CRIA_UNROLL
    for (int i = 0; i < kInFlight; i++) v[i] = load<U32x4>(from + at + i * kThreads * 4);
    CRIA_UNROLL
    for (int i = 0; i < kInFlight; i++) store(to + at + i * kThreads * 4, v[i]);
  }
}

constexpr int kRows = 4, kColumns = 2;  // tiles of 16 x 8 of a warp: as many chains of products
constexpr int kWarps = 8;

// Two bf16 of either sign from 0.5 to 1: zeros would need less power, and be faster.
CRIA_DEVICE uint32_t operand(uint32_t seed) {
  seed = (seed ^ (seed >> 16)) * 0x7feb352du;
  seed = (seed ^ (seed >> 15)) * 0x846ca68bu;
  return (seed & 0x807f807fu) | 0x3f003f00u;
}

__global__ void __launch_bounds__(kWarps * 32) multiply_kernel(float* sink, int rounds) {
  uint32_t a[kRows][4], b[kColumns][2];
  float d[kRows][kColumns][4] = {};
  const uint32_t seed = (blockIdx.x * kWarps * 32 + threadIdx.x) * 32;
  CRIA_UNROLL
  for (uint32_t i = 0; i < kRows * 4; i++) a[i / 4][i % 4] = operand(seed + i);
  CRIA_UNROLL
  for (uint32_t i = 0; i < kColumns * 2; i++) b[i / 2][i % 2] = operand(seed + kRows * 4 + i);
  for (int round = 0; round < rounds; round++) CRIA_UNROLL
  for (int i = 0; i < kRows; i++) CRIA_UNROLL
  for (int j = 0; j < kColumns; j++) mma_16x8x16(d[i][j], a[i], b[j]);
  float all = 0;
  CRIA_UNROLL
  for (int i = 0; i < kRows * kColumns * 4; i++) all += d[i / 4 / kColumns][i / 4 % kColumns][i % 4];
  if (all == 0.123f) *sink = all;
}

constexpr int kGroups = 2, kTokens = 256, kDepth = 64;
constexpr size_t kOperands = size_t{kGroups * 64 + kTokens} * kDepth * sizeof(bf16);

// A warpgroup has 64 rows of its own and shares all columns.
__global__ void __launch_bounds__(kGroups * 128, 1) multiply_wgmma_kernel(float* sink, int rounds) {
  if constexpr (kHasWgmma) {
    CRIA_SHARED(bf16, shared);  // [kGroups * 64 + kTokens][kDepth]
    for (uint32_t i = threadIdx.x; i < kOperands / 4; i += kGroups * 128)
      reinterpret_cast<uint32_t*>(shared)[i] = operand(blockIdx.x * uint32_t(kOperands) + i);
    publish_shared();
    sync_block();
    const bf16* const a = shared + threadIdx.x / 128 * 64 * kDepth;
    const bf16* const b = shared + kGroups * 64 * kDepth;
    float d[kTokens / 2] = {};
    for (int round = 0; round < rounds; round++) {
      wgmma_fence();
      CRIA_UNROLL
      for (int step = 0; step < kDepth; step += 16)
        wgmma_64xnx16<kTokens>(d, matrix_descriptor(a + step), matrix_descriptor(b + step));
      wgmma_commit();
      wgmma_wait<1>();
    }
    wgmma_wait<0>();
    float all = 0;
    CRIA_UNROLL
    for (float f : d) all += f;
    if (all == 0.123f) *sink = all;
  }
}

}  // namespace

int64_t ceiling_tile() { return kTile * int64_t{sizeof(uint32_t)}; }

void ceiling_read(void* sink, const void* from, int64_t bytes, int blocks, const Stream& stream) {
  launch(read_kernel, "ceiling_read", Shape{dim3(unsigned(blocks)), dim3(kThreads)}, stream,
         static_cast<uint32_t*>(sink), static_cast<const uint32_t*>(from), bytes / 4);
}
void ceiling_copy(void* to, const void* from, int64_t bytes, int blocks, const Stream& stream) {
  launch(copy_kernel, "ceiling_copy", Shape{dim3(unsigned(blocks)), dim3(kThreads)}, stream, static_cast<uint32_t*>(to),
         static_cast<const uint32_t*>(from), bytes / 4);
}
void ceiling_multiply(void* sink, int rounds, int blocks, bool wgmma, const Stream& stream) {
  if (wgmma)
    return launch(multiply_wgmma_kernel, "ceiling_wgmma", Shape{dim3(unsigned(blocks)), dim3(kGroups * 128), kOperands},
                  stream, static_cast<float*>(sink), rounds);
  launch(multiply_kernel, "ceiling_multiply", Shape{dim3(unsigned(blocks)), dim3(kWarps * 32)}, stream,
         static_cast<float*>(sink), rounds);
}
double ceiling_operations(int rounds, int blocks, bool wgmma) {
  const double a_round = wgmma ? kGroups * 2 * 64 * kTokens * kDepth : kWarps * kRows * kColumns * 2 * 16 * 8 * 16;
  return double(blocks) * rounds * a_round;
}

}  // namespace cria::CRIA_MACHINE
