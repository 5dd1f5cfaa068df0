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

  Deal(const Weight& w, const Chip& chip)
      : blocks(int((w.rows + kRows - 1) / kRows)), depth(int((w.cols + kDepth - 1) / kDepth)) {
    const int most = depth < kMostSegments ? depth : kMostSegments;
    const auto longest_run = [&](int parts) {
      cut(parts);
      return int64_t{(units() + chip.sms - 1) / chip.sms} * length;
    };
    int64_t best = longest_run(1);
    for (int parts = 2; parts <= most; parts++) best = longest_run(parts) < best ? longest_run(parts) : best;
    for (int parts = 1; longest_run(parts) * 100 > best * 104;) parts++;
    workers = units() < chip.sms ? units() : chip.sms;
  }
  void cut(int parts) {
    length = (depth + parts - 1) / parts;
    segments = (depth + length - 1) / length;
  }
  constexpr int units() const { return blocks * segments; }
  // Worker -> its first unit; unit -> its worker; unit -> its first step, counted through all blocks.
  constexpr int begin(int worker) const { return int(int64_t{worker} * units() / workers); }
  constexpr int worker_of(int unit) const { return int((int64_t{unit + 1} * workers - 1) / units()); }
  constexpr int step_of(int unit) const { return unit / segments * depth + unit % segments * length; }
};

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
