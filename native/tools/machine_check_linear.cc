// machine_check_linear.cc - the linear of the design's prototype: how long emulated threads take for real work.
#include <chrono>

#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/mma.h"
#include "machine_check.h"

namespace cria::simt {
namespace {

constexpr int kTile = 64, kDepth = 32, kPitch = kDepth + 8, kStage = 2 * kTile * kPitch;

// y[m, n] = x[m, k] w[n, k]^T: a tile of 64 x 64 a block, 4 warps, two stages of 32 columns.
void linear(float* y, const bf16* x, const bf16* w, int n, int k) {
  CRIA_SHARED(bf16, shared);  // [2 stages][x, w][64][40]
  const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_row = int(blockIdx.y) * kTile, first_column = int(blockIdx.x) * kTile;
  const auto fetch = [&](int stage, int at) {
    bf16* const to = shared + stage * kStage;
    for (int i = thread; i < kTile * kDepth / 8; i += 128) {
      const int r = i / (kDepth / 8), c = i % (kDepth / 8) * 8;
      copy_async_16(to + r * kPitch + c, x + (first_row + r) * k + at + c, true);
      copy_async_16(to + (kTile + r) * kPitch + c, w + (first_column + r) * k + at + c, true);
    }
    copy_async_commit();
  };
  float sum[8][4] = {};
  fetch(0, 0);
  for (int at = 0, stage = 0; at < k; at += kDepth, stage ^= 1) {
    if (at + kDepth < k) {
      fetch(stage ^ 1, at + kDepth);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    sync_block();
    const bf16 *const sx = shared + stage * kStage, *const sw = sx + kTile * kPitch;
    for (int step = 0; step < kDepth; step += 16) {
      uint32_t a[4];
      ldmatrix(a, sx + (warp * 16 + lane % 16) * kPitch + step + lane / 16 * 8);
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[4];
        ldmatrix(b, sw + (j * 8 + lane / 16 * 8 + lane % 8) * kPitch + step + lane / 8 % 2 * 8);
        mma_16x8x16(sum[j], a, {b[0], b[1]});
        mma_16x8x16(sum[j + 1], a, {b[2], b[3]});
      }
    }
    sync_block();  // nobody may refill this stage while a warp still reads it
  }
  for (int j = 0; j < 8; j++)
    for (int i = 0; i < 4; i++)
      y[(first_row + warp * 16 + lane / 4 + i / 2 * 8) * n + first_column + j * 8 + lane % 4 * 2 + i % 2] = sum[j][i];
}

}  // namespace

void check_linear() {
  constexpr int m = 64, n = 128, k = 256;
  std::vector<bf16> x(m * k), w(n * k);
  std::vector<float> y(m * n);
  for (size_t i = 0; i < x.size(); i++) x[i] = bf16(float(int(i * 29 % 31) - 15));
  for (size_t i = 0; i < w.size(); i++) w[i] = bf16(float(int(i * 17 % 23) - 11));
  const Shape shape{dim3(n / kTile, m / kTile), dim3(128), 2 * kStage * sizeof(bf16)};
  const auto* const from = static_cast<const bf16*>(x.data());
  const auto* const weight = static_cast<const bf16*>(w.data());
  expect(
      "a linear of 64 x 128 x 256", linear, shape,
      [&] {
        for (size_t row = 0; row < m; row++)
          for (size_t column = 0; column < n; column++) {
            float sum = 0;  // of whole numbers: exact
            for (size_t i = 0; i < k; i++) sum += float(x[row * k + i]) * float(w[column * k + i]);
            if (std::exchange(y[row * n + column], 0.0f) != sum) return false;
          }
        return true;
      },
      y.data(), from, weight, n, k);

  double best = 1e9;
  Machine machine(Options{});
  for (int i = 0; i < 20; i++) {
    const auto started = std::chrono::steady_clock::now();
    launch(linear, "linear", shape, Stream{&machine}, y.data(), from, weight, n, k);
    machine.drain();
    best =
        std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count());
  }
  std::cout << "linear took " << best << " ms\n";
}

}  // namespace cria::simt
