// machine_check.cc - the emulated machine itself: what each instruction means, and that every misuse is told.
// Run by test/machine.test.ts under sanitizers: prints one line a case, "ok NAME" or "WRONG NAME: why".
#include <chrono>
#include <iostream>

#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/grid.h"
#include "../machine/ptx/mbarrier.h"
#include "../machine/ptx/mma.h"
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/warp.h"
#include "../machine/ptx/wgmma.h"
#include "../machine/tile/arrive.h"
#include "../machine/tile/reduce.h"

namespace cria::simt {
namespace {

bool good = true;
void tell(const std::string& name, bool holds, const std::string& why = "") {
  std::cout << (holds ? "ok " : "WRONG ") << name << (holds ? "" : ": " + why) << "\n";
  good = good && holds;
}

// Runs a kernel on every seed, with late and early copies; `holds` looks at what it left.
template <class... P, class... A>
void expect(const std::string& name, void (*kernel)(P...), const Shape& shape, const std::function<bool()>& holds,
            A... arguments) {
  std::string why;
  for (uint64_t seed = 0; seed < 20 && why.empty(); seed++) {
    Options options;
    options.seed = seed / 2;
    options.late = seed % 2 == 0;
    Machine m(options);
    try {
      launch(kernel, name.c_str(), shape, Stream{&m}, arguments...);
      m.drain();
      if (!holds()) why = "another result with " + options.text();
    } catch (const Error& e) {
      why = e.what();
    }
  }
  tell(name, why.empty(), why);
}

// Every seed must end with an error that says `message` and how to repeat it.
template <class... P, class... A>
void refuse(const std::string& name, void (*kernel)(P...), const Shape& shape, const std::string& message,
            A... arguments) {
  std::string why;
  for (uint64_t seed = 0; seed < 20 && why.empty(); seed++) {
    Options options;
    options.seed = seed;
    Machine m(options);
    try {
      launch(kernel, name.c_str(), shape, Stream{&m}, arguments...);
      m.drain();
      why = "nothing was said with " + options.text();
    } catch (const Error& e) {
      const std::string text = e.what();
      if (e.code != "ERR_DEVICE_KERNEL" || text.find(message) == std::string::npos ||
          text.find("CRIA_SIMT=" + options.text()) == std::string::npos)
        why = e.code + " " + text;
    }
  }
  tell(name, why.empty(), why);
}

// --- Instructions

void shuffles(uint32_t* out) {
  const unsigned l = threadIdx.x % 32;
  out[l] = shuffle(kAllLanes, l * 10, (l * 7 + 3) % 32);  // every lane asks another one
  out[32 + l] = shuffle_xor(kAllLanes, l, l < 16 ? 1 : 2);
  out[64 + l] = ballot(kAllLanes, l % 3 == 0);
  if (l < 16)
    out[96 + l] = reduce_max(0x0000ffffu, (l * 37) % 16);
  else
    out[96 + l] = reduce_max(0xffff0000u, 100 + l);
}

void warp_reduction(float* out) { out[threadIdx.x] = reduce_warp(float(threadIdx.x), Sum{}, 8); }

// d = a b of random small numbers, through ldmatrix; and stmatrix, ldmatrix, transposed.
void tensor_cores(float* d, const bf16* a, const bf16* b, bf16* copy, bf16* transposed) {
  CRIA_SHARED(bf16, shared);  // a [16, 16], b [8 columns, 16], a tile of 16 x 16
  const int lane = int(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  sync_warp();
  uint32_t fa[4], fb[4];
  ldmatrix(fa, shared + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix(fb, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  float sum[4] = {};
  mma_16x8x16(sum, fa, {fb[0], fb[1]});
  for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
  stmatrix(shared + 384 + lane % 16 * 16 + lane / 16 * 8, fa);
  sync_warp();
  for (int i = lane; i < 256; i += 32) copy[i] = shared[384 + i];
  uint32_t ft[4];
  ldmatrix<true>(ft, shared + lane % 8 * 16 + lane / 8 * 0);
  std::memcpy(transposed + lane * 2, &ft[0], 4);
}

void copies(int* out, const int* in, bool late) {
  CRIA_SHARED(int, shared);
  copy_async_16(shared + 4 * threadIdx.x, in + 4 * threadIdx.x, threadIdx.x % 2 == 0);
  copy_async_commit();
  if (late) sync_block();  // however long it takes, nothing has landed for sure
  copy_async_wait<0>();
  for (int i = 0; i < 4; i++) out[4 * threadIdx.x + unsigned(i)] = shared[4 * threadIdx.x + unsigned(i)];
}

void arrivals(uint32_t* counter, int* sum, int* parts) {
  CRIA_SHARED(uint32_t, flag);
  parts[blockIdx.x * 64 + threadIdx.x] = int(blockIdx.x + 1);
  if (!last_to_arrive(counter, gridDim.x, flag)) return;
  int s = 0;
  for (unsigned b = 0; b < gridDim.x; b++) s += parts[b * 64 + (threadIdx.x ^ 63)];
  sum[threadIdx.x] = s;
}

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

void different_barriers() {
  if (threadIdx.x < 32)
    sync_block();
  else
    sync_block();
}
void missing_thread() {
  if (threadIdx.x > 0) sync_block();
}
void foreign_lane() { sync_warp(0x1u); }
void divided_warp() {
  if (threadIdx.x % 2)
    ballot(kAllLanes, true);
  else
    sync_warp();
}
void unaligned_row() {
  CRIA_SHARED(bf16, shared);
  uint32_t r[4];
  ldmatrix(r, shared + 1);
}
void forgotten_copy(const int* in) {
  CRIA_SHARED(int, shared);
  copy_async_16(shared, in, true);
}
void beyond_shared() {
  CRIA_SHARED(uint8_t, shared);
  shared[100 + threadIdx.x] = 1;
}
void impatient(int* out) { *out = 1; }

void two_launches() {
  std::string why = "nothing was said";
  Machine m(Options{});
  int out = 0;
  const Shape shape{dim3(1), dim3(1), 0, 1, true};
  launch(impatient, "impatient", shape, Stream{&m}, &out);
  try {
    m.drain();
  } catch (const Error& e) {
    why = e.what();
  }
  tell("a dependent that does not wait", why.find("has ended without grid_wait()") != std::string::npos, why);
}

void writer(int* value) {
  grid_wait();
  *value += 1;
}
void reader(const int* value, int* seen) {
  grid_wait();
  seen[blockIdx.x] = *value;
}
void in_order() {
  bool holds = true;
  for (uint64_t seed = 0; seed < 50; seed++) {
    Options options;
    options.seed = seed;
    Machine m(options);
    int value = 0, seen[2][6] = {};
    for (int i = 0; i < 2; i++) {
      launch(writer, "writer", Shape{dim3(1), dim3(1), 0, 1, true}, Stream{&m}, &value);
      launch(reader, "reader", Shape{dim3(6), dim3(1), 0, 1, true}, Stream{&m}, &value, &seen[i][0]);
    }
    m.drain();
    for (int i = 0; i < 2; i++)
      for (const int s : seen[i]) holds = holds && s == i + 1;
  }
  tell("dependents see what was written before, and nothing later", holds, "another order");
}

}  // namespace

int check() {
  std::vector<uint32_t> u(128);
  expect(
      "shuffles, votes, reductions", shuffles, Shape{dim3(1), dim3(32)},
      [&] {
        for (unsigned l = 0; l < 32; l++) {
          const bool low = l < 16;
          if (u[l] != (l * 7 + 3) % 32 * 10 || u[32 + l] != (l ^ (low ? 1u : 2u)) || u[64 + l] != 0x49249249u ||
              u[96 + l] != (low ? 15u : 131u))
            return false;
        }
        return true;
      },
      u.data());

  std::vector<float> f(64);
  expect(
      "eight lanes at a time", warp_reduction, Shape{dim3(1), dim3(64)},
      [&] {
        for (unsigned i = 0; i < 64; i++)
          if (f[i] != float(i / 8 * 64 + 28)) return false;
        return true;
      },
      f.data());

  std::vector<bf16> a(256), b(128), copy(256), transposed(64);
  std::vector<float> d(128);
  for (unsigned i = 0; i < 256; i++) a[i] = bf16(float(int(i * 29 % 31) - 15));
  for (unsigned i = 0; i < 128; i++) b[i] = bf16(float(int(i * 17 % 23) - 11));
  expect(
      "mma, ldmatrix, stmatrix", tensor_cores, Shape{dim3(1), dim3(32), 1280 * sizeof(bf16)},
      [&] {
        for (unsigned m = 0; m < 16; m++)
          for (unsigned n = 0; n < 8; n++) {
            float sum = 0;
            for (unsigned k = 0; k < 16; k++) sum += float(a[m * 16 + k]) * float(b[n * 16 + k]);
            if (d[m * 8 + n] != sum) return false;
          }
        for (unsigned i = 0; i < 256; i++)
          if (copy[i].bits != a[i].bits) return false;
        for (unsigned l = 0; l < 32; l++)
          for (unsigned i = 0; i < 2; i++)
            if (transposed[l * 2 + i].bits != a[(2 * (l % 4) + i) * 16 + l / 4].bits) return false;
        return true;
      },
      d.data(), a.data(), b.data(), copy.data(), transposed.data());

  alignas(16) static int in[256], out[256];
  for (int i = 0; i < 256; i++) in[i] = i + 1;
  for (const bool late : {false, true})
    expect(
        late ? "copies, after a barrier" : "copies", copies, Shape{dim3(1), dim3(64), 1024},
        [&] {
          for (int i = 0; i < 256; i++)
            if (out[i] != (i / 4 % 2 == 0 ? i + 1 : 0)) return false;
          return true;
        },
        out, in, late);

  uint32_t counter = 0;
  std::vector<int> sum(64), parts(64 * 7);
  expect(
      "the last block sees what all wrote", arrivals, Shape{dim3(7), dim3(64), 4},
      [&] {
        for (const int s : sum)
          if (s != 28) return false;
        std::fill(sum.begin(), sum.end(), 0);
        std::fill(parts.begin(), parts.end(), -1000);
        return counter == 0;
      },
      &counter, sum.data(), parts.data());
  in_order();

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
  refuse("different barriers", different_barriers, two_warps, "other threads of the block wait at another barrier");
  refuse("a thread that never arrives", missing_thread, two_warps, "nobody can go on");
  refuse("a lane that the mask does not name", foreign_lane, two_warps, "a lane that its mask does not name");
  refuse("lanes at different instructions", divided_warp, two_warps, "while other lanes of its mask are at");
  refuse("an unaligned row", unaligned_row, two_warps, "not a multiple of 16");
  refuse("a copy that nobody waits for", forgotten_copy, two_warps, "never waited for", static_cast<const int*>(in));
  refuse("an mbarrier that nobody made", fresh_mbarrier, two_warps, "was not initialised");
  refuse("a bulk copy that nobody waits for", abandoned_copy, two_warps, "in flight", static_cast<const int*>(in));
  refuse("a write behind shared memory", beyond_shared, Shape{dim3(1), dim3(4), 100}, "outside of its 100 bytes");
  two_launches();
  return good ? 0 : 1;
}

}  // namespace cria::simt

int main() { return cria::simt::check(); }
