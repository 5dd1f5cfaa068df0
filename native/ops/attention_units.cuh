// attention_units.cuh - how the work of attention.cu is dealt to its blocks. For that file alone, after the machine's
// headers.
#pragma once
#include "attention.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kRows = 64;     // of a tile
constexpr int kSplit = 256;   // keys
constexpr int kSlots = 8192;  // (sequence, key/value head, split) with results of their own, at most

struct Arguments {
  bf16* y;
  const bf16 *q, *k, *v;
  const int32_t *query_start, *kv_length, *page_table;
  float* partials;  // [slots, group, dim], then the highest score and the sum of weights: [slots, group, 2]
  uint32_t* counters;
  int seqs, kv_heads, group, pages, page_size, max_pages, slots;
  float scale;  // of scores, for base 2
};

struct Sequence {
  int start, rows, splits;
  int64_t length;  // keys that the last row sees, if they exist
  int most;        // one more than there can be: who sees that one is NaN

  CRIA_DEVICE int visible_to(int token) const {
    const int64_t keys = length - rows + token + 1;
    return keys < 0 ? 0 : keys < most ? int(keys) : most;
  }
};

CRIA_DEVICE Sequence sequence(const Arguments& op, int64_t live, int s) {
  Sequence q;
  q.start = op.query_start[s];
  const int64_t next = op.query_start[s + 1], end = next < live ? next : live;
  q.rows = q.start >= 0 && end > q.start ? int(end - q.start) : 0;
  q.length = op.kv_length[s];
  q.most = op.max_pages * op.page_size + 1;
  const int keys = q.visible_to(q.rows - 1);
  q.splits = keys > kSplit ? (keys + kSplit - 1) / kSplit : 1;
  return q;
}

// What a block does at a time: a tile of rows and all of its keys, or one split of the keys of a tile.
struct Unit {
  int seq, head, tile, split;
  int slot;  // of split 0 of this head; -1: all keys
};

// Deals the units, to every warp by itself; 32 sequences at a time, forwards.
struct Dealer {
  int seq = 0, units = 0, slots = 0;  // of the lane 0; before it

  CRIA_DEVICE static int sum_before(int own, int lane) {
    int sum = own;
    for (int d = 1; d < 32; d *= 2) {
      const int other = shuffle(kAllLanes, sum, unsigned(lane - d) % 32);
      if (lane >= d) sum += other;
    }
    return sum - own;
  }

  CRIA_DEVICE bool find(const Arguments& op, int64_t live, int index, Unit& unit) {
    const int lane = int(threadIdx.x % 32);
    for (; seq < op.seqs; seq += 32) {
      const int s = seq + lane;
      Sequence q{};
      if (s < op.seqs) q = sequence(op, live, s);
      const int tiles = (q.rows * op.group + kRows - 1) / kRows;
      const bool divisible = q.rows == 1 && q.splits > 1 && op.group <= 16 && (s + 1) * op.kv_heads <= kCounters;
      const int wanted = divisible ? q.splits * op.kv_heads : 0;
      const int slot = slots + sum_before(wanted, lane);
      const bool divided = divisible && slot + wanted <= op.slots;
      const int each = divided ? q.splits : tiles, own = each * op.kv_heads;
      const int first = units + sum_before(own, lane);
      const int end = shuffle(kAllLanes, first + own, 31);
      if (index < end) {
        const auto owner = unsigned(reduce_warp(int(first + own <= index), Sum{}));
        const int parts = shuffle(kAllLanes, each, owner), part = index - shuffle(kAllLanes, first, owner);
        const int slot_of = shuffle(kAllLanes, divided ? slot : -1, owner);
        unit.seq = seq + int(owner);
        unit.head = part / parts;
        unit.tile = slot_of < 0 ? parts - 1 - part % parts : 0;  // late tiles see the most keys, so they are first
        unit.split = slot_of < 0 ? 0 : part % parts;
        unit.slot = slot_of < 0 ? -1 : slot_of + unit.head * parts;
        return true;
      }
      slots = shuffle(kAllLanes, slot + wanted, 31);
      units = end;
    }
    return false;
  }
};

}  // namespace
}  // namespace cria::CRIA_MACHINE
