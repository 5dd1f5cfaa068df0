// attention_ring.cuh - keys and values on their way through shared memory. For attention_sm90.cu alone.
#pragma once
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/wgmma.h"
#include "attention_units.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kGroup = 128;           // threads
constexpr int kNowhere = 0x7fffffff;  // greater than any key

constexpr int rows_of(int groups) { return 64 * groups; }
// The producer is one warp of a warpgroup, which gives its registers to the others.
constexpr int threads_of(int groups) { return (groups + 1) * kGroup; }
constexpr int stages_of(int dim, int groups) { return groups == 1 && dim == 128 ? 4 : 8; }

// What a thread keeps of the splits before: acc, then two highest scores and two sums of weights; and the same two of
// the split that has just ended.
constexpr int kept_of(int dim) { return dim / 2 + 8; }

// Shared memory: a ring of keys or values, each [dim / 64][kBlock, 64] in the 128-byte swizzle; what is kept of earlier
// splits [groups][kept][kGroup]; full and empty barriers; of every stage which keys exist, and whether values that are
// not finite were found; for every column the first key with such a value; a flag.
template <int dim, int groups>
struct Ring {
  static constexpr int kStages = stages_of(dim, groups), kStage = kBlock * dim;
  bf16* stages;
  float* merged;
  uint64_t *full, *empty;
  uint32_t *exists, *spoiled;
  int* first;
  uint32_t* flag;

  static constexpr size_t bytes() {
    return kStages * (kStage * sizeof(bf16) + 2 * sizeof(uint64_t) + 3 * sizeof(uint32_t)) +
           (groups * kept_of(dim) * kGroup + dim + 1) * sizeof(uint32_t);
  }
  CRIA_DEVICE explicit Ring(bf16* shared)
      : stages(shared),
        merged(reinterpret_cast<float*>(stages + kStages * kStage)),
        full(reinterpret_cast<uint64_t*>(merged + groups * kept_of(dim) * kGroup)),
        empty(full + kStages),
        exists(reinterpret_cast<uint32_t*>(empty + kStages)),
        spoiled(exists + 2 * kStages),
        first(reinterpret_cast<int*>(spoiled + kStages)),
        flag(reinterpret_cast<uint32_t*>(first + dim)) {}

  CRIA_DEVICE bf16* stage(int i) const { return stages + i % kStages * kStage; }
  CRIA_DEVICE void wait_full(int i) const { mbarrier_wait(full + i % kStages, uint32_t(i / kStages) % 2); }
  CRIA_DEVICE void wait_empty(int i) const {
    if (i >= kStages) mbarrier_wait(empty + i % kStages, uint32_t(i / kStages - 1) % 2);
  }
  // By a warp that needs nothing of a stage: no lane may still wait for it when it is filled again.
  CRIA_DEVICE void pass(int i) const {
    wait_full(i);
    sync_warp();
    release(i);
  }
  CRIA_DEVICE void release(int i) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + i % kStages);
  }
};

static_assert(Ring<128, 1>::bytes() <= 113 << 10 && Ring<64, 1>::bytes() <= 113 << 10, "two on a multiprocessor");
static_assert(Ring<128, 2>::bytes() <= 227 << 10 && Ring<64, 2>::bytes() <= 227 << 10);

// Keys of one page that are copied together.
constexpr int box_rows(int64_t page_size) {
  int rows = 1;
  while (rows < kBlock && page_size % (2 * rows) == 0) rows *= 2;
  return rows;
}
struct Maps {
  TensorMap keys, values;  // [pages, kvHeads, pageSize, dim], boxes of [box, 64]
};

// All lanes of a warp call it. Keys that nobody sees, and keys without a page, come as zeros.
template <int dim, int groups>
CRIA_DEVICE void produce(const Maps& maps, int box, const Arguments& op, int64_t alive, const Ring<dim, groups>& ring) {
  const int lane = int(threadIdx.x % 32), boxes = kBlock / box;
  const uint64_t policy = cache_policy(groups == 1 ? Evict::first : Evict::last);
  Dealer<rows_of(groups)> dealer;
  Unit unit;
  int i = 0;
  for (int index = int(blockIdx.x); dealer.find(op, alive, index, unit); index += int(gridDim.x)) {
    const Tile<rows_of(groups)> tile(op, alive, unit);
    const int32_t* const table = op.page_table + int64_t{unit.seq} * op.max_pages;
    for (int block = tile.begin; block < tile.end; block += kBlock) {
      int page[2];
      uint32_t exists[2];
      for (int h = 0; h < 2; h++) {  // of the keys `lane` and `lane` + 32
        const int key = block + h * 32 + lane, p = key / op.page_size;
        page[h] = key < tile.most && p < op.max_pages ? table[p] : -1;
        exists[h] = ballot(kAllLanes, page[h] >= 0 && page[h] < op.pages);
      }
      for (int side = 0; side < 2; side++, i++) {
        ring.wait_empty(i);
        uint64_t* const full = ring.full + i % ring.kStages;
        if (lane == 0) {
          ring.spoiled[i % ring.kStages] = 0;
          store(ring.exists + i % ring.kStages * 2, Pack<uint32_t, 2>{{exists[0], exists[1]}});
          mbarrier_arrive(full, uint32_t(ring.kStage * sizeof(bf16)));
        }
        for (int b = lane; b < (boxes * dim / 64 + 31) / 32 * 32; b += 32) {
          const int key = b % boxes * box, part = b / boxes * kBoxColumns;
          const int low = shuffle(kAllLanes, page[0], unsigned(key) % 32);
          const int high = shuffle(kAllLanes, page[1], unsigned(key) % 32), from = key < 32 ? low : high;
          const int at[5] = {part, (block + key) % op.page_size, unit.head, from < 0 ? op.pages : from, 0};
          if (part < dim)
            tensor_copy<5>(ring.stage(i) + part * kBlock + key * kBoxColumns, side ? &maps.values : &maps.keys, at,
                           full, policy);
        }
      }
    }
  }
}

// Threads of a tile; the first group alone.
template <int groups>
CRIA_DEVICE void sync_tile() {
  sync_warps(1, groups * kGroup);
}
struct FirstGroup {
  CRIA_DEVICE void operator()() const { sync_warps(2, kGroup); }
};

// Values that are not finite become 0; whether there were any, and then ring.first says where. By all threads of a
// tile.
template <int dim, int groups>
CRIA_DEVICE bool clean(const Ring<dim, groups>& ring, int i) {
  constexpr int kThreads = groups * kGroup;
  bf16* const values = ring.stage(i);
  uint32_t* const spoiled = ring.spoiled + i % ring.kStages;
  ring.wait_full(i);
  uint32_t found = 0;
  CRIA_UNROLL
  for (int c = 0; c < ring.kStage / 8 / kThreads; c++) {
    const auto chunk = load<Pack<uint32_t, 4>>(values + (c * kThreads + int(threadIdx.x)) * 8);
    for (const uint32_t pair : chunk.at) found |= not_finite(pair);
  }
  if (found) *spoiled = 1;
  sync_tile<groups>();
  if (*spoiled == 0) return false;
  if (const int column = int(threadIdx.x); column < dim) {
    int first = kNowhere;
    for (int key = kBlock - 1; key >= 0; key--) {
      bf16* const value = values + column / 64 * 64 * kBlock + swizzled(key, column % 64);
      if (not_finite(value->bits)) {
        first = key;
        *value = bf16(0.0f);
      }
    }
    ring.first[column] = first;
    publish_shared();
  }
  sync_tile<groups>();
  return true;
}

}  // namespace
}  // namespace cria::CRIA_MACHINE
