// linear_deal.cuh - who does which part of a linear on sm_90a, and how K is cut.
#pragma once
#include "../machine/gpu.h"

namespace cria::CRIA_MACHINE {

constexpr int kRows = 128, kDepth = 64;  // of a step: rows of the weight, elements of K
constexpr int kSide = 8;                 // many: blocks of rows that are done side by side, so that L2 has them
constexpr int kMostSegments = 8;

// How K is cut and how the segments are dealt. A run that ends within a block costs an exchange; so of the cuts that
// keep the longest run within 4% of the best, the coarsest.
struct Deal {
  int blocks, depth;             // blocks of rows, steps of one block
  int segments = 1, length = 1;  // of K, of a segment in steps
  int workers = 1;

  constexpr Deal(int64_t rows, int64_t cols, int sms)
      : blocks(int((rows + kRows - 1) / kRows)), depth(int((cols + kDepth - 1) / kDepth)) {
    const int most = depth < kMostSegments ? depth : kMostSegments;
    int64_t best = longest_run(1, sms);
    for (int parts = 2; parts <= most; parts++)
      if (const int64_t run = longest_run(parts, sms); run < best) best = run;
    for (int parts = 1; longest_run(parts, sms) * 100 > best * 104;) parts++;
    workers = units() < sms ? units() : sms;
  }
  Deal(const Weight& w, const Chip& chip) : Deal(w.rows, w.cols, chip.sms) {}
  // Cuts K, and says how many steps the busiest worker has then.
  constexpr int64_t longest_run(int parts, int sms) {
    length = (depth + parts - 1) / parts;
    segments = (depth + length - 1) / length;
    return int64_t{(units() + sms - 1) / sms} * length;
  }
  constexpr int units() const { return blocks * segments; }
  // Worker -> its first unit; unit -> its worker; unit -> its first step, counted through all blocks.
  constexpr int begin(int worker) const { return int(int64_t{worker} * units() / workers); }
  constexpr int worker_of(int unit) const { return int((int64_t{unit + 1} * workers - 1) / units()); }
  constexpr int step_of(int unit) const { return unit / segments * depth + unit % segments * length; }
};

// Llama 3 8B on 132 multiprocessors: q | k | v, o, gate | up, down, head. Steps of the busiest worker: 24 where the
// mean is 23.3, 16 (15.5), 112 (108.6), 56 (54.3), 506 (485.8).
static_assert(Deal(6144, 4096, 132).segments == 8 && Deal(4096, 4096, 132).segments == 4);
static_assert(Deal(28672, 4096, 132).segments == 4 && Deal(4096, 14336, 132).segments == 4);
static_assert(Deal(128256, 4096, 132).segments == 3);
// Every unit belongs to the worker in whose run it lies.
constexpr bool is_consistent(const Deal& d) {
  int worker = 0, step = 0;
  for (int unit = 0; unit < d.units(); unit++) {
    if (unit == d.begin(worker + 1)) worker++;
    if (d.worker_of(unit) != worker || d.step_of(unit) != step) return false;
    const int in = unit % d.segments * d.length;
    step += in + d.length < d.depth ? d.length : d.depth - in;
  }
  return worker == d.workers - 1 && step == d.blocks * d.depth && d.begin(d.workers) == d.units();
}
static_assert(is_consistent(Deal(6144, 4096, 132)) && is_consistent(Deal(4096, 14336, 114)));
static_assert(is_consistent(Deal(8, 8, 132)) && is_consistent(Deal(520, 1032, 4)) && is_consistent(Deal(136, 264, 7)));

// A worker's steps: i -> where it is.
struct Place {
  int block, k, token;
};
template <int kTokens, bool many>
struct Work {
  const Deal& deal;
  int count;  // of steps
  int first;  // few: step; many: tile
  int tiles;  // of tokens

  CRIA_DEVICE Work(const Deal& d, int64_t live) : deal(d), first(int(blockIdx.x)), tiles(1) {
    if (many) {
      tiles = int((live + kTokens - 1) / kTokens);
      const int all = deal.blocks * tiles;
      count = (all - first + int(gridDim.x) - 1) / int(gridDim.x) * deal.depth;
    } else {
      first = deal.step_of(deal.begin(int(blockIdx.x)));
      count = deal.step_of(deal.begin(int(blockIdx.x) + 1)) - first;
    }
  }
  CRIA_DEVICE Place at(int i) const {
    if (!many) return {(first + i) / deal.depth, (first + i) % deal.depth, 0};
    // kSide blocks of rows for all tokens, then the next ones.
    const int tile = first + i / deal.depth * int(gridDim.x);
    const int before = tile / (kSide * tiles) * kSide, rest = tile - before * tiles;
    const int side = deal.blocks - before < kSide ? deal.blocks - before : kSide;
    return {before + rest % side, i % deal.depth, rest / side * kTokens};
  }
};

}  // namespace cria::CRIA_MACHINE
