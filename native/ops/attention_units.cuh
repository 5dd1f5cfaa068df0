// attention_units.cuh - what both families of attention kernels share: how work is dealt to blocks, which rows a tile
// has, and how the splits of a row become one.
//
// A tile is up to kRows packed rows, (token, query head of a group) pairs of one sequence and key/value head. Its keys
// begin with key 0. Every 256 keys, a split, the softmax begins anew; splits are merged in their order. The splits of a
// sequence with one row go to different blocks, and the last of them merges.
#pragma once
#include "../machine/gpu.h"
#include "../machine/tile/arrive.h"
#include "../machine/tile/softmax.h"
#include "../machine/tile/vectors.h"
#include "attention.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kBlock = 64;   // keys at a time
constexpr int kSplit = 256;  // keys
constexpr int kSlots = 64;   // a multiprocessor: (sequence, key/value head, split) with results of their own, at most

inline int64_t splits_of(const Attention& op) {
  return (op.pageTable.dims[1] * op.page_size() + 1 + kSplit - 1) / kSplit;
}
inline int64_t slots_of(const Attention& op, const Chip& chip) {
  const int64_t slots = op.kvLength.dims[0] * op.kv_heads() * splits_of(op), enough = int64_t{kSlots} * chip.sms;
  return slots < enough ? slots : enough;
}

struct Arguments {
  bf16* y;
  const bf16 *q, *k, *v;
  const int32_t *query_start, *kv_length, *page_table;
  float* partials;  // [slots, group, dim], then the highest score and the sum of weights: [slots, group, 2]
  uint32_t* counters;
  int seqs, kv_heads, group, pages, page_size, max_pages, slots;
  float scale;  // of scores, for base 2

  Arguments(const Attention& a, const Gpu& gpu)
      : y(a.y.as<bf16>()),
        q(a.q.as<const bf16>()),
        k(a.k.as<const bf16>()),
        v(a.v.as<const bf16>()),
        query_start(a.queryStart.as<const int32_t>()),
        kv_length(a.kvLength.as<const int32_t>()),
        page_table(a.pageTable.as<const int32_t>()),
        partials(reinterpret_cast<float*>(gpu.workspace)),
        counters(gpu.counters),
        seqs(int(a.kvLength.dims[0])),
        kv_heads(int(a.kv_heads())),
        group(int(a.heads() / a.kv_heads())),
        pages(int(a.k.dims[0])),
        page_size(int(a.page_size())),
        max_pages(int(a.pageTable.dims[1])),
        slots(int(slots_of(a, *gpu.chip))),
        scale(1.4426950408889634f / sqrtf(float(a.head_dim()))) {}
};

struct Sequence {
  int start, rows, splits;
  int length;  // keys that the last row sees, if they exist
  int most;    // one more than there can be: who sees that one is NaN

  CRIA_DEVICE int visible_to(int token) const {
    const int keys = length - rows + token + 1;
    return keys < 0 ? 0 : keys < most ? keys : most;
  }
};

CRIA_DEVICE Sequence sequence(const Arguments& op, int64_t live, int s) {
  Sequence q;
  q.start = op.query_start[s];
  const int64_t next = op.query_start[s + 1], end = next < live ? next : live;
  q.rows = q.start >= 0 && end > q.start ? int(end - q.start) : 0;
  q.most = op.max_pages * op.page_size + 1;
  const int length = op.kv_length[s], enough = q.most + q.rows;  // for all rows to see all
  q.length = length < 0 ? 0 : length < enough ? length : enough;
  const int keys = q.visible_to(q.rows - 1);
  q.splits = keys > kSplit ? (keys + kSplit - 1) / kSplit : 1;
  return q;
}

// How many units there are at most. Lengths are known to the device alone: a block goes on to further units, and leaves
// when there is none.
inline int64_t most_units(const Attention& op, int rows) {
  const int64_t packed = op.q.dims[0] * (op.heads() / op.kv_heads()), seqs = op.kvLength.dims[0];
  return op.kv_heads() * (packed / rows + seqs * (1 + splits_of(op)));
}

// What a block does at a time: a tile of rows and all of its keys, or one split of the keys of a tile.
struct Unit {
  int seq, head, tile, split;
  int slot;  // of split 0 of this head; -1: all keys
};

// Deals the units, to every warp by itself; 32 sequences at a time, forwards. kRows: of a tile.
template <int kRows>
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

// The rows of a unit. Those after the last repeat it, and are not written.
template <int kRows>
struct Tile {
  const Arguments& op;
  const Unit& unit;
  Sequence seq;
  int rows;
  int most, begin, end;  // keys that the last row sees, and those of this unit

  CRIA_DEVICE Tile(const Arguments& a, int64_t live, const Unit& u) : op(a), unit(u), seq(sequence(a, live, u.seq)) {
    const int rest = seq.rows * op.group - unit.tile * kRows;
    rows = rest < kRows ? rest : kRows;
    most = visible_to(rows - 1);
    begin = unit.split * kSplit;
    end = unit.slot < 0 || most < begin + kSplit ? most : begin + kSplit;
  }
  CRIA_DEVICE int packed(int row) const { return unit.tile * kRows + (row < rows ? row : rows - 1); }
  CRIA_DEVICE int visible_to(int row) const { return seq.visible_to(packed(row) / op.group); }
  CRIA_DEVICE int64_t place(int row, int dim) const {  // in q and y
    const int64_t token = seq.start + packed(row) / op.group;
    return ((token * op.kv_heads + unit.head) * op.group + packed(row) % op.group) * dim;
  }
  // Where a row's results lie among the partials: its columns; its highest score and sum of weights.
  CRIA_DEVICE float* partial(int split, int row, int dim) const {
    return op.partials + (int64_t{unit.slot + split} * op.group + row) * dim;
  }
  CRIA_DEVICE float* total(int split, int row, int dim) const {
    return op.partials + int64_t{op.slots} * op.group * dim + (int64_t{unit.slot + split} * op.group + row) * 2;
  }
};

// What a row is, from its sums. No key seen: NaN. Not finite, which only values are that are not: NaN. Never -0.
CRIA_DEVICE bf16 weighted_mean(float sum, float inverse) {
  const float mean = fused(sum, inverse, 0.0f);
  return bf16(fused(mean, 0.0f, mean));
}

// y of the rows of a unit, from the partials of all splits; by kThreads threads, 4 columns each.
template <int dim, int kThreads, int kRows>
CRIA_DEVICE void merge_splits(const Tile<kRows>& tile) {
  constexpr int kAtOnce = 8;  // splits that are read together: one wait for memory
  for (int at = int(threadIdx.x) * 4; at < tile.rows * dim; at += kThreads * 4) {
    const int row = at / dim, column = at % dim;
    float highest = kLowest, sum = 0, acc[4] = {};
    for (int first = 0; first < tile.seq.splits; first += kAtOnce) {
      Pack<float, 2> total[kAtOnce];
      F32x4 part[kAtOnce];
      CRIA_UNROLL
      for (int i = 0; i < kAtOnce; i++) {
        const int split = first + i < tile.seq.splits ? first + i : first;
        total[i] = load<Pack<float, 2>>(tile.total(split, row, dim));
        part[i] = load<F32x4>(tile.partial(split, row, dim) + column);
      }
      CRIA_UNROLL
      for (int i = 0; i < kAtOnce; i++) {
        const bool exists = first + i < tile.seq.splits;  // if not, nothing is added: no branch, so loads stay together
        const Merge merge(highest, exists ? total[i].at[0] : kLowest);
        highest = merge.highest;
        sum = merge(sum, exists ? total[i].at[1] : 0.0f);
        CRIA_UNROLL
        for (int j = 0; j < 4; j++) acc[j] = merge(acc[j], exists ? part[i].at[j] : 0.0f);
      }
    }
    Pack<bf16, 4> y;
    for (int j = 0; j < 4; j++) y.at[j] = weighted_mean(acc[j], 1.0f / sum);
    store(tile.op.y + tile.place(row, dim) + column, y);
  }
}

}  // namespace

// attention_sm90.cu: the same with TMA and wgmma, on sm_90a.
void run_sm90(const Attention& op, const Gpu& gpu);

}  // namespace cria::CRIA_MACHINE
