// ptx_probe.cu - every instruction of machine/ptx with registers and memory from outside: bytes in, raw bytes out.
// Built for the emulated machine (ptx_probe_simt) and for GPUs (ptx_probe_cuda); test/ptx compares both with
// references.
//
// A new case is a kernel and a line in `cases`. Layouts of inputs and outputs are in words, per block.
#include "../machine/ptx/arithmetic.h"
#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/grid.h"
#include "../machine/ptx/mbarrier.h"
#include "../machine/ptx/mma.h"
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/warp.h"
#include "../machine/ptx/wgmma.h"
#include "../machine/tile/arrive.h"
#include "ptx_probe.h"

// Whether this pass of the compiler can emit instructions of sm_90.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PROBE_SM90 1
#endif

namespace cria::CRIA_MACHINE {
namespace {

constexpr unsigned kImage = 1024;  // words of a piece of memory: 256 rows of 16 bytes

CRIA_DEVICE float as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
CRIA_DEVICE uint32_t as_word(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

// in [32][a, b, c], out [32][a b + c, a b, 2 ^ a]
__global__ void arithmetic(const uint32_t* in, uint32_t* out) {
  const unsigned l = threadIdx.x, i = blockIdx.x * 32 + l;
  const float a = as_float(in[3 * i]);
  const float b = as_float(in[3 * i + 1]);
  out[3 * i] = as_word(fused(a, b, as_float(in[3 * i + 2])));
  out[3 * i + 1] = as_word(product(a, b));
  out[3 * i + 2] = as_word(exp2_fast(a));
}

// in: mask, then [32][value, from, bits, vote]; the lanes of the mask and the others go different ways.
// out [32][shuffle, shuffle of floats, shuffle_xor, ballot, reduce_max]
CRIA_DEVICE void exchange_all(uint32_t mask, const uint32_t* in, uint32_t* out) {
  out[0] = shuffle(mask, in[0], in[1]);
  out[1] = as_word(shuffle(mask, as_float(in[0]), in[1]));
  out[2] = shuffle_xor(mask, in[0], in[2]);
  out[3] = ballot(mask, in[3] != 0);
  out[4] = reduce_max(mask, in[0]);
}
__global__ void warp(const uint32_t* in, uint32_t* out) {
  const unsigned l = threadIdx.x;
  in += blockIdx.x * 129;
  out += blockIdx.x * 160 + l * 5;
  const uint32_t mask = in[0];
  if (mask >> l & 1)
    exchange_all(mask, in + 1 + 4 * l, out);
  else
    exchange_all(~mask, in + 1 + 4 * l, out);
}

// in [32][a 4, b 2, d 4], out [32][d 4]
__global__ void mma(const uint32_t* in, uint32_t* out) {
  const unsigned i = blockIdx.x * 32 + threadIdx.x;
  in += 10 * i;
  float d[4];
  for (int k = 0; k < 4; k++) d[k] = as_float(in[6 + k]);
  mma_16x8x16(d, {in[0], in[1], in[2], in[3]}, {in[4], in[5]});
  for (unsigned k = 0; k < 4; k++) out[4 * i + k] = as_word(d[k]);
}

// in: [32] row that the lane names, image; out [32][4]
template <bool transposed>
__global__ void load_matrix(const uint32_t* in, uint32_t* out) {
  CRIA_SHARED(uint32_t, image);
  const unsigned l = threadIdx.x;
  in += blockIdx.x * (32 + kImage);
  for (unsigned i = l; i < kImage; i += 32) image[i] = in[32 + i];
  sync_warp();
  uint32_t r[4];
  ldmatrix<transposed>(r, reinterpret_cast<const bf16*>(image + 4 * in[l]));
  for (unsigned k = 0; k < 4; k++) out[(blockIdx.x * 32 + l) * 4 + k] = r[k];
}

// in: [32] row that the lane names, [32][4] registers, image; out: the image afterwards
__global__ void store_matrix(const uint32_t* in, uint32_t* out) {
#ifdef PROBE_SM90
  CRIA_SHARED(uint32_t, image);
  const unsigned l = threadIdx.x;
  in += blockIdx.x * (160 + kImage);
  for (unsigned i = l; i < kImage; i += 32) image[i] = in[160 + i];
  sync_warp();
  const uint32_t* const r = in + 32 + 4 * l;
  stmatrix(reinterpret_cast<bf16*>(image + 4 * in[l]), {r[0], r[1], r[2], r[3]});
  sync_warp();
  for (unsigned i = l; i < kImage; i += 32) out[blockIdx.x * kImage + i] = image[i];
#endif
}

// in: [4 groups][64 threads][offset in bytes from the image, 64 bits; valid; 0], image
// out: [4][64][16 bytes] as the thread itself read it after waiting for two groups, then for all; [4][64][16 bytes] as
// the thread 63 - t read it after a barrier
__global__ void copies(const uint32_t* in, uint32_t* out) {
  CRIA_SHARED(uint32_t, shared);  // [4][64][4]
  const unsigned t = threadIdx.x;
  in += blockIdx.x * (1024 + kImage);
  out += blockIdx.x * 2048;
  for (unsigned g = 0; g < 4; g++) {
    const uint32_t* const what = in + (g * 64 + t) * 4;
    const uint64_t offset = what[0] | uint64_t{what[1]} << 32;
    const auto from = reinterpret_cast<uintptr_t>(in + 1024) + offset;
    copy_async_16(shared + (g * 64 + t) * 4, reinterpret_cast<const void*>(from), what[2] != 0);
    copy_async_commit();
  }
  copy_async_wait<2>();
  for (unsigned i = 0; i < 8; i++) out[(i / 4 * 64 + t) * 4 + i % 4] = shared[(i / 4 * 64 + t) * 4 + i % 4];
  copy_async_wait<0>();
  for (unsigned i = 8; i < 16; i++) out[(i / 4 * 64 + t) * 4 + i % 4] = shared[(i / 4 * 64 + t) * 4 + i % 4];
  sync_block();
  for (unsigned i = t; i < 1024; i += 64) out[1024 + (i ^ 252)] = shared[i ^ 252];
}

// Eight steps through two places: one thread copies in two pieces, 64 others read what has come.
// in: [8][offset, bytes, bytes of the first piece, whether they are announced afterwards], image; out [8][256]
__global__ void bulk(const uint32_t* in, uint32_t* out) {
#ifdef PROBE_SM90
  CRIA_SHARED(uint32_t, shared);  // [2][256], barriers
  auto* const full = reinterpret_cast<uint64_t*>(shared + 512);
  auto* const empty = full + 2;
  const unsigned t = threadIdx.x;
  in += blockIdx.x * (32 + kImage);
  if (t == 0)
    for (int i = 0; i < 2; i++) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 64);
    }
  sync_block();
  for (unsigned s = 0; s < 8; s++) {
    const uint32_t offset = in[4 * s], bytes = in[4 * s + 1], first = in[4 * s + 2];
    uint32_t* const place = shared + s % 2 * 256;
    if (t == 0) {
      if (s >= 2) mbarrier_wait(empty + s % 2, (s / 2 - 1) % 2);
      const bool afterwards = in[4 * s + 3] != 0;
      if (!afterwards) mbarrier_arrive(full + s % 2, bytes);
      const uint32_t* const from = in + 32 + offset / 4;
      if (first) bulk_copy(place, from, first, full + s % 2);
      if (bytes > first) bulk_copy(place + first / 4, from + first / 4, bytes - first, full + s % 2);
      if (afterwards) mbarrier_arrive(full + s % 2, bytes);
    } else if (t >= 32) {
      mbarrier_wait(full + s % 2, s / 2 % 2);
      for (unsigned i = t - 32; i < bytes / 4; i += 64) out[(blockIdx.x * 8 + s) * 256 + i] = place[i];
      mbarrier_arrive(empty + s % 2);
    }
  }
#endif
}

// at [blocks][rank]; out: the box as it lies in shared memory, of block b from row b % 8 after a multiple of 1024 bytes
// on
template <int rank>
__global__ void box(uint32_t* out, const int32_t* at, int words, const __grid_constant__ TensorMap map) {
#ifdef PROBE_SM90
  CRIA_SHARED(uint32_t, shared);
  auto* const barrier = reinterpret_cast<uint64_t*>(shared + 8 * 32 + words);
  uint32_t* const to = shared + blockIdx.x % 8 * 32;
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    mbarrier_init(barrier, 1);
  }
  sync_block();
  if (threadIdx.x == 0) {
    int first[rank];
    for (unsigned i = 0; i < rank; i++) first[i] = at[rank * blockIdx.x + i];
    const uint64_t policy = cache_policy(blockIdx.x % 2 ? Evict::first : Evict::last);
    tensor_prefetch(&map, first);
    mbarrier_arrive(barrier, uint32_t(words) * 4);
    tensor_copy(to, &map, first, barrier, policy);
  }
  mbarrier_wait(barrier, 0);
  for (int i = int(threadIdx.x); i < words; i += 64) out[int(blockIdx.x) * words + i] = to[i];
#endif
}
// Numbers: elements of the tensor; its sizes, strides, sides of a box. Input: the tensor, then where the boxes begin.
template <int rank>
void boxes(Probe& p) {
  const size_t tensor = size_t(p.number(0)) * sizeof(bf16), blocks = (p.bytes() - tensor) / (4 * rank);
  int64_t sizes[rank], strides[rank];
  int side[rank], words = 1;
  for (size_t i = 0; i < rank; i++) {
    sizes[i] = p.number(1 + i);
    strides[i] = p.number(1 + rank + i);
    side[i] = p.number(1 + 2 * rank + i);
    words *= side[i];
  }
  words /= 2;
  const auto* const in = p.in<std::byte>();
  launch(box<rank>, "tensor_copy", Shape{dim3(unsigned(blocks)), dim3(64), size_t(8 * 32 + words) * 4 + 8}, p.stream(),
         p.out<uint32_t>(blocks * size_t(words)), reinterpret_cast<const int32_t*>(in + tensor), words,
         tensor_map<rank>(reinterpret_cast<const bf16*>(in), sizes, strides, side));
}

// Two of the four steps of 16 along K. a comes into shared memory as a bulk copy, b is written by the threads.
// in: first step, second step, 0, 0, a [64][64] and b [n][64] as they shall lie in shared memory, [128][d n / 2]; out:
// d
template <int n>
__global__ void warpgroup(const uint32_t* in, uint32_t* out) {
#ifdef PROBE_SM90
  CRIA_SHARED(uint32_t, shared);  // a, b, the barrier
  auto* const barrier = reinterpret_cast<uint64_t*>(shared + (64 + n) * 32);
  const unsigned t = threadIdx.x;
  in += blockIdx.x * (4 + 64 * 32 + n * 96);
  if (t == 0) mbarrier_init(barrier, 1);
  for (unsigned i = t; i < n * 32; i += 128) shared[64 * 32 + i] = in[4 + 64 * 32 + i];
  publish_shared();
  sync_block();
  if (t == 0) {
    mbarrier_arrive(barrier, 64 * 128);
    bulk_copy(shared, in + 4, 64 * 128, barrier);
  }
  float d[n / 2];
  CRIA_UNROLL
  for (unsigned i = 0; i < n / 2; i++) d[i] = as_float(in[4 + (64 + n) * 32 + t * (n / 2) + i]);
  mbarrier_wait(barrier, 0);
  const auto* const a = reinterpret_cast<const bf16*>(shared);
  const bf16 *const first = a + 16 * in[0], *const second = a + 16 * in[1];
  wgmma_fence();
  wgmma_64xnx16<n>(d, matrix_descriptor(first), matrix_descriptor(first + 64 * 64));
  wgmma_64xnx16<n>(d, matrix_descriptor(second), matrix_descriptor(second + 64 * 64));
  wgmma_commit();
  wgmma_wait<0>();
  CRIA_UNROLL
  for (unsigned i = 0; i < n / 2; i++) out[(blockIdx.x * 128 + t) * (n / 2) + i] = as_word(d[i]);
#endif
}
template <int n>
Case wgmma(const char* name) {
  return {name, 90, true, each_block(name, warpgroup<n>, {4 + 64 * 32 + n * 96, n * 64, 128, (64 + n) * 128 + 8})};
}

// a from registers, b [n][64] or, transposed, [n / 64][64][64] with K as rows, as a bulk copy.
// in: first step, second step, 0, 0, b as it shall lie in shared memory, [128][a of both steps 8], [128][d n / 2]; out:
// d
template <int n, bool transposed>
__global__ void warpgroup_registers(const uint32_t* in, uint32_t* out) {
#ifdef PROBE_SM90
  CRIA_SHARED(uint32_t, shared);  // b, the barrier
  auto* const barrier = reinterpret_cast<uint64_t*>(shared + n * 32);
  const unsigned t = threadIdx.x;
  in += blockIdx.x * (4 + 128 * 8 + n * 96);
  if (t == 0) mbarrier_init(barrier, 1);
  sync_block();
  if (t == 0) {
    mbarrier_arrive(barrier, n * 128);
    bulk_copy(shared, in + 4, n * 128, barrier);
  }
  const uint32_t* const registers = in + 4 + n * 32;
  uint32_t a[2][4];
  float d[n / 2];
  CRIA_UNROLL
  for (unsigned i = 0; i < 8; i++) a[i / 4][i % 4] = registers[t * 8 + i];
  CRIA_UNROLL
  for (unsigned i = 0; i < n / 2; i++) d[i] = as_float(registers[128 * 8 + t * (n / 2) + i]);
  mbarrier_wait(barrier, 0);
  const auto* const b = reinterpret_cast<const bf16*>(shared);
  CRIA_UNROLL
  for (unsigned i = 0; i < 2; i++) {
    wgmma_registers(d);
    wgmma_registers(a);
    wgmma_fence();
    wgmma_64xnx16<n, transposed>(
        d, a[i], transposed ? transposed_descriptor(b + in[i] * 16 * 64, 64 * 64) : matrix_descriptor(b + in[i] * 16));
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_registers(d);
  }
  CRIA_UNROLL
  for (unsigned i = 0; i < n / 2; i++) out[(blockIdx.x * 128 + t) * (n / 2) + i] = as_word(d[i]);
#endif
}
template <int n, bool transposed>
Case wgmma_registers(const char* name) {
  return {name, 90, true,
          each_block(name, warpgroup_registers<n, transposed>, {4 + 128 * 8 + n * 96, n * 64, 128, n * 128 + 8})};
}

__global__ void put(uint32_t* at, uint32_t value) { *at = value; }

__global__ void count(const uint32_t* by, uint32_t* counter, uint32_t* was) {
  const unsigned i = blockIdx.x * 64 + threadIdx.x;
  was[i] = count_up(counter, by[i]);
}
// in: the counter is put to the number; what every thread adds. out: what every thread saw, the counter afterwards.
void counts(Probe& p) {
  const size_t blocks = p.bytes() / 256;
  const auto* const by = p.in<uint32_t>();
  auto* const was = p.out<uint32_t>(blocks * 64 + 1);
  launch(put, "put", Shape{dim3(1), dim3(1)}, p.stream(), was + blocks * 64, uint32_t(p.number(0)));
  launch(count, "count_up", Shape{dim3(unsigned(blocks)), dim3(64)}, p.stream(), by, was + blocks * 64, was);
}

__global__ void gather(const uint32_t* in, uint32_t* parts, uint32_t* counter, uint32_t* sum) {
  CRIA_SHARED(uint32_t, flag);
  const unsigned t = threadIdx.x;
  parts[blockIdx.x * 64 + t] = in[blockIdx.x * 64 + t];
  if (!last_to_arrive(counter, gridDim.x, flag)) return;
  uint32_t s = 0;
  for (unsigned b = 0; b < gridDim.x; b++) s += parts[b * 64 + (63 - t)];
  sum[t] = s;
}
// in [blocks][64]; out: what the last block saw of all others: [64] sums of the columns 63 - t; the counter;
// [blocks][64]
void last_block(Probe& p) {
  const size_t blocks = p.bytes() / 256;
  const auto* const in = p.in<uint32_t>();
  auto* const out = p.out<uint32_t>(65 + blocks * 64);
  launch(put, "put", Shape{dim3(1), dim3(1)}, p.stream(), out + 64, uint32_t{0});
  launch(gather, "last_to_arrive", Shape{dim3(unsigned(blocks)), dim3(64), 4}, p.stream(), in, out + 65, out + 64, out);
}

__global__ void step(const uint32_t* from, uint32_t* to, uint32_t n, uint32_t k) {
  grid_launch_dependents();
  const uint32_t i = blockIdx.x * 64 + threadIdx.x;
  grid_wait();
  if (i < n) to[i] = from[(i * 5 + k) % n] * 1664525u + k;
}
// A chain of programmatic dependents, each of which needs all that the one before wrote. Number: kernels. in [n], out
// [2][n]: kernel k writes half k % 2.
void chain(Probe& p) {
  const auto n = uint32_t(p.bytes() / 4);
  const uint32_t* from = p.in<uint32_t>();
  auto* const out = p.out<uint32_t>(2 * size_t{n});
  for (uint32_t k = 0; k < uint32_t(p.number(0)); k++) {
    Shape shape{dim3((n + 63) / 64), dim3(64)};
    shape.dependent = p.board.arch >= 90;
    launch(step, "chain", shape, p.stream(), from, out + k % 2 * n, n, k);
    from = out + k % 2 * n;
  }
}

const std::vector<Case> cases = {
    {"arithmetic", 80, false, each_block("arithmetic", arithmetic, {96, 96, 32})},
    {"warp", 80, false, each_block("warp", warp, {129, 160, 32})},
    {"mma", 80, false, each_block("mma", mma, {320, 128, 32})},
    {"ldmatrix", 80, false, each_block("ldmatrix", load_matrix<false>, {32 + kImage, 128, 32, kImage * 4})},
    {"ldmatrix_transposed", 80, false, each_block("ldmatrix", load_matrix<true>, {32 + kImage, 128, 32, kImage * 4})},
    {"stmatrix", 90, false, each_block("stmatrix", store_matrix, {160 + kImage, kImage, 32, kImage * 4})},
    {"copy_async", 80, false, each_block("copy_async", copies, {1024 + kImage, 2048, 64, 4096})},
    {"bulk_copy", 90, false, each_block("bulk_copy", bulk, {32 + kImage, 2048, 96, 2048 + 32})},
    {"tensor_copy_2", 90, false, boxes<2>},
    {"tensor_copy_5", 90, false, boxes<5>},
    wgmma<8>("wgmma_8"),
    wgmma<16>("wgmma_16"),
    wgmma<32>("wgmma_32"),
    wgmma<64>("wgmma_64"),
    wgmma<128>("wgmma_128"),
    wgmma<192>("wgmma_192"),
    wgmma<256>("wgmma_256"),
    wgmma_registers<64, false>("wgmma_registers_64"),
    wgmma_registers<128, false>("wgmma_registers_128"),
    wgmma_registers<64, true>("wgmma_transposed_64"),
    wgmma_registers<128, true>("wgmma_transposed_128"),
    {"count_up", 80, false, counts},
    {"last_to_arrive", 80, false, last_block},
    {"chain", 80, false, chain},
};

}  // namespace
}  // namespace cria::CRIA_MACHINE

int main(int argc, char** argv) { return cria::CRIA_MACHINE::probe_main(cria::CRIA_MACHINE::cases, argc, argv); }
