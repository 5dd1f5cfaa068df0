// machine_check.cc - the emulated machine itself: what each instruction means, and that every misuse is told.
// Run by test/machine.test.ts under sanitizers: prints one line a case, "ok NAME" or "WRONG NAME: why".
#include "machine_check.h"

#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/grid.h"
#include "../machine/ptx/mma.h"
#include "../machine/ptx/warp.h"
#include "../machine/tile/arrive.h"
#include "../machine/tile/reduce.h"

namespace cria::simt {
namespace {

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

// --- Misuse

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

  const Shape two_warps{dim3(2), dim3(64), 96};
  refuse("different barriers", different_barriers, two_warps, "other threads of the block wait at another barrier");
  refuse("a thread that never arrives", missing_thread, two_warps, "nobody can go on");
  refuse("a lane that the mask does not name", foreign_lane, two_warps, "a lane that its mask does not name");
  refuse("lanes at different instructions", divided_warp, two_warps, "while other lanes of its mask are at");
  refuse("an unaligned row", unaligned_row, two_warps, "not a multiple of 16");
  refuse("a copy that nobody waits for", forgotten_copy, two_warps, "never waited for", static_cast<const int*>(in));
  refuse("a write behind shared memory", beyond_shared, Shape{dim3(1), dim3(4), 100}, "outside of its 100 bytes");
  two_launches();
  check_async();
  check_linear();
  return good ? 0 : 1;
}

}  // namespace cria::simt

int main() { return cria::simt::check(); }
