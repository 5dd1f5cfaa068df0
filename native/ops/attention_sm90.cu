// attention_sm90.cu - one order of arithmetic for decode and prefill, on TMA and wgmma: queries on the M side, from
// registers, keys and then values on the N side, from shared memory.
//
// One warp requests blocks of 64 keys and of their values, page by page; a ring of them is in flight. A warpgroup has
// 64 rows of a tile, and two of them share the keys of a prefill. Weights are the sum of two bf16; they are multiplied with
// values while the next softmax is computed.
//
// To a row, keys that it does not see are weights of 0; as 0 times NaN is NaN, values of blocks with such keys are
// searched for some that are not finite. Those become 0, and the rows that see them NaN.
#include "../machine/ptx/tensor_copy.h"
#include "../machine/ptx/wgmma.h"
#include "attention_units.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kGroup = 128;          // threads
constexpr int kNowhere = 0x7fffffff;  // greater than any key

constexpr int rows_of(int groups) { return 64 * groups; }
// With two groups the producer is a warpgroup, which gives them its registers.
constexpr int threads_of(int groups) { return groups * kGroup + (groups == 1 ? 32 : kGroup); }
// Two blocks of one group fit on a multiprocessor.
constexpr int stages_of(int dim, int groups) { return groups == 1 && dim == 128 ? 5 : 8; }

// What a thread keeps of the splits before: acc, then two highest scores and two sums of weights; and the same two of the
// split that has just ended.
constexpr int kept_of(int dim) { return dim / 2 + 8; }

// Shared memory: a ring of keys or values, each [dim / 64][kBlock, 64] in the 128-byte swizzle; what is kept of earlier
// splits [groups][kept][kGroup]; full and empty barriers; of every stage which keys exist, and whether values that are not
// finite were found; for every column the first key with such a value; a flag.
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
  CRIA_DEVICE void release(int i) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + i % kStages);
  }
};

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
        const bool seen = guard(key < tile.most && p < op.max_pages);
        page[h] = seen ? table[p] : -1;
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
            tensor_copy<5>(ring.stage(i) + part * kBlock + key * kBoxColumns, side ? &maps.values : &maps.keys, at, full,
                           policy);
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

// A thread's part of a warpgroup's 64 rows: rows g and g + 8 of its warp's 16, as r = 0 and 1, and columns 2 t and 2 t + 1
// of every 8. Element 4 n + 2 r + j of scores and sums is column 8 n + 2 t + j of row r.
constexpr int row_at(int element) { return element / 2 % 2; }
constexpr int column_at(int element, int t) { return element / 4 * 8 + 2 * t + element % 2; }

template <int dim, int groups>
struct Attend {
  // Whether values are weighed during the next softmax; for two blocks on a multiprocessor that takes too many registers,
  // and each works while the other waits.
  static constexpr bool kOverlaps = groups == 2;
  const Ring<dim, groups>& ring;
  const Tile<rows_of(groups)>& tile;
  const int lane = int(threadIdx.x) % 32, t = lane % 4, group = int(threadIdx.x) / kGroup;
  const int warp_row = group * 64 + int(threadIdx.x) % kGroup / 32 * 16, row = warp_row + lane / 4;
  float* const merged = ring.merged + group * (kept_of(dim) * kGroup) + int(threadIdx.x) % kGroup;  // [kept][kGroup]

  uint32_t query[dim / 16][4];
  float score[kBlock / 2], acc[dim / 2];
  uint32_t high[kBlock / 16][4], low[kBlock / 16][4];  // weights
  int visible[2];
  float highest[2] = {kLowest, kLowest}, sum[2] = {};  // of this split: the highest score, this thread's sum of weights
  bool any_before = false;                             // splits; they are in `merged`

  CRIA_DEVICE Attend(const Ring<dim, groups>& r, const Tile<rows_of(groups)>& of) : ring(r), tile(of) {
    CRIA_UNROLL
    for (int i = 0; i < 2; i++) {
      visible[i] = tile.visible_to(row + 8 * i);
      const bf16* const from = tile.op.q + tile.place(row + 8 * i, dim) + 2 * t;
      CRIA_UNROLL
      for (int c = 0; c < dim / 8; c++) query[c / 2][i + c % 2 * 2] = load<uint32_t>(from + c * 8);
    }
    CRIA_UNROLL
    for (int j = 0; j < dim / 2; j++) acc[j] = 0;
  }

  // Starts scores of the keys of stage i.
  CRIA_DEVICE void multiply_keys(int i) {
    CRIA_UNROLL
    for (int j = 0; j < kBlock / 2; j++) score[j] = 0;
    ring.wait_full(i);
    wgmma_registers(score);
    wgmma_registers(query);
    wgmma_fence();
    CRIA_UNROLL
    for (int c = 0; c < dim / 16; c++)
      wgmma_64xnx16<kBlock, false>(score, query[c],
                                   matrix_descriptor(ring.stage(i) + c / 4 * (kBlock * 64) + c % 4 * 16));
    wgmma_commit();
  }
  // Starts weights times the values of stage i.
  CRIA_DEVICE void multiply_values(int i) {
    ring.wait_full(i);
    wgmma_registers(acc);
    wgmma_registers(high);
    wgmma_registers(low);
    wgmma_fence();
    CRIA_UNROLL
    for (int c = 0; c < kBlock / 16; c++) {
      const uint64_t values = transposed_descriptor(ring.stage(i) + c * 16 * 64, kBlock * 64);
      wgmma_64xnx16<dim, true>(acc, high[c], values);
      wgmma_64xnx16<dim, true>(acc, low[c], values);
    }
    wgmma_commit();
  }

  // Scores become weights; factor: of the sums before.
  CRIA_DEVICE void softmax(int block, int i, float (&factor)[2]) {
    const uint32_t* const exists = ring.exists + i % ring.kStages * 2;
    const uint32_t there[2] = {exists[0], exists[1]};
    const bool all_seen = block + kBlock <= tile.visible_to(warp_row) && (there[0] & there[1]) == kAllLanes;
    if (!all_seen) CRIA_UNROLL
    for (int j = 0; j < kBlock / 2; j++) {
      const int key = column_at(j, t);
      const bool sees = guard(block + key < visible[row_at(j)]);
      const bool is_there = there[j / 16] >> key % 32 & 1;
      score[j] = !sees ? kLowest : is_there ? score[j] : __builtin_nanf("");
    }
    CRIA_UNROLL
    for (int r = 0; r < 2; r++) {
      float top = kLowest;
      CRIA_UNROLL
      for (int j = 0; j < kBlock / 2; j++)
        if (row_at(j) == r) top = Max{}(score[j], top);
      top = Max{}(reduce_warp(top, Max{}, 4) * tile.op.scale, highest[r]);
      const float base = base_of(top);
      factor[r] = exp2_fast(highest[r] - base);
      highest[r] = top;
      sum[r] *= factor[r];
      CRIA_UNROLL
      for (int j = 0; j < kBlock / 2; j++)
        if (row_at(j) == r) {
          score[j] = exp2_fast(fused(score[j], tile.op.scale, -base));
          sum[r] += score[j];
        }
    }
  }
  // The weights as operands; i: the stage of the values.
  CRIA_DEVICE void weigh(int block, int i) {
    CRIA_UNROLL
    for (int c = 0; c < kBlock / 16; c++) CRIA_UNROLL
    for (int r = 0; r < 4; r++) {
      const WeightPair w(score[8 * c + 2 * r], score[8 * c + 2 * r + 1]);
      high[c][r] = w.high;
      low[c][r] = w.low;
    }
    if (is_partial(block) && clean(ring, i)) CRIA_UNROLL
    for (int j = 0; j < dim / 2; j++)
      if (ring.first[column_at(j, t)] < visible[row_at(j)] - block) acc[j] = __builtin_nanf("");
  }
  CRIA_DEVICE bool is_partial(int block) const { return tile.visible_to(0) < block + kBlock; }

  // The split has ended, but for what the values of its last keys add to acc.
  CRIA_DEVICE void end_split() {
    CRIA_UNROLL
    for (int r = 0; r < 2; r++) {
      merged[(dim / 2 + 4 + r) * kGroup] = highest[r];
      merged[(dim / 2 + 6 + r) * kGroup] = reduce_warp(sum[r], Sum{}, 4);
      highest[r] = kLowest;
      sum[r] = 0;
    }
  }
  // Adds the splits before to acc and to what end_split() has kept.
  CRIA_DEVICE void merge() {
    CRIA_UNROLL
    for (int r = 0; r < 2; r++) {
      float *const before = merged + (dim / 2 + r) * kGroup, *const of = before + 4 * kGroup;
      const Merge merge(any_before ? before[0] : kLowest, of[0]);
      before[0] = merge.highest;
      before[2 * kGroup] = merge(any_before ? before[2 * kGroup] : 0.0f, of[2 * kGroup]);
      CRIA_UNROLL
      for (int j = 0; j < dim / 2; j++)
        if (row_at(j) == r) acc[j] = merge(any_before ? merged[j * kGroup] : 0.0f, acc[j]);
    }
    any_before = true;
  }

  // All keys of the unit that this warpgroup's rows see. i: the stage of the next keys; the values are in the one after.
  CRIA_DEVICE void keys(int& i) {
    const int top_row = group * 64, here = top_row < tile.rows ? tile.visible_to(top_row + 63) : 0;
    const int to = here < tile.end ? here : tile.end;
    int block = tile.begin;
    if (block < to) {
      float factor[2];
      multiply_keys(i);
      wgmma_wait<0>();
      wgmma_registers(score);
      softmax(block, i, factor);
      ring.release(i);
      weigh(block, i + 1);
      for (block += kBlock; block < to; block += kBlock, i += 2) {
        if (!kOverlaps) {
          multiply_values(i + 1);
          wgmma_wait<0>();
          wgmma_registers(acc);
        }
        multiply_keys(i + 2);
        if (kOverlaps) multiply_values(i + 1);
        wgmma_wait<kOverlaps ? 1 : 0>();
        wgmma_registers(score);
        const bool begins = block % kSplit == 0;
        if (begins) end_split();
        softmax(block, i + 2, factor);
        ring.release(i + 2);
        wgmma_wait<0>();
        wgmma_registers(acc);
        ring.release(i + 1);
        if (begins) {
          merge();
          CRIA_UNROLL
          for (int j = 0; j < dim / 2; j++) {
            merged[j * kGroup] = acc[j];
            acc[j] = 0;
          }
        } else {
          CRIA_UNROLL
          for (int j = 0; j < dim / 2; j++) acc[j] *= factor[row_at(j)];
        }
        weigh(block, i + 3);
      }
      multiply_values(i + 1);
      wgmma_wait<0>();
      wgmma_registers(acc);
      ring.release(i + 1);
      i += 2;
    }
    for (; block < tile.end; block += kBlock, i += 2) {  // only the other group sees them
      ring.wait_full(i);
      ring.release(i);
      if (is_partial(block)) clean(ring, i + 1);
      ring.wait_full(i + 1);
      ring.release(i + 1);
    }
  }

  CRIA_DEVICE void finish() {
    const Arguments& op = tile.op;
    const Unit& unit = tile.unit;
    if (unit.slot < 0) {
      end_split();
      merge();
      CRIA_UNROLL
      for (int r = 0; r < 2; r++) {
        const bool used = guard(row + 8 * r < tile.rows);
        if (!used) continue;
        bf16* const y = op.y + tile.place(row + 8 * r, dim) + 2 * t;
        const float inverse = 1.0f / merged[(dim / 2 + 2 + r) * kGroup];
        CRIA_UNROLL
        for (int n = 0; n < dim / 8; n++)
          store(y + n * 8, Pack<bf16, 2>{{weighted_mean(acc[4 * n + 2 * r], inverse),
                                          weighted_mean(acc[4 * n + 2 * r + 1], inverse)}});
      }
    } else if (group == 0) {
      CRIA_UNROLL
      for (int r = 0; r < 2; r++) {
        const float all = reduce_warp(sum[r], Sum{}, 4);
        const bool used = guard(row + 8 * r < tile.rows);
        if (!used) continue;
        float* const partial = tile.partial(unit.split, row + 8 * r, dim) + 2 * t;
        CRIA_UNROLL
        for (int n = 0; n < dim / 8; n++)
          store(partial + n * 8, Pack<float, 2>{{acc[4 * n + 2 * r], acc[4 * n + 2 * r + 1]}});
        if (t == 0) store(tile.total(unit.split, row + 8 * r, dim), Pack<float, 2>{{highest[r], all}});
      }
      uint32_t* const counter = op.counters + unit.seq * op.kv_heads + unit.head;
      if (last_to_arrive(counter, unsigned(tile.seq.splits), ring.flag, FirstGroup{})) merge_splits<dim, kGroup>(tile);
    }
  }
};

template <int dim, int groups>
__global__ void __launch_bounds__(threads_of(groups), groups == 1 ? 2 : 1)
    attention_sm90_kernel(const __grid_constant__ Maps maps, int box, const __grid_constant__ Arguments op, Live live) {
  if constexpr (kHasWgmma) {
    CRIA_SHARED(bf16, shared);
    const Ring<dim, groups> ring(shared);
    if (threadIdx.x == 0) {
      prefetch_map(&maps.keys);
      prefetch_map(&maps.values);
      for (int s = 0; s < ring.kStages; s++) {
        mbarrier_init(ring.full + s, 1);
        mbarrier_init(ring.empty + s, groups * kGroup / 32);
      }
    }
    sync_block();
    grid_launch_dependents();
    grid_wait();
    const int64_t alive = live_rows(live);
    if (threadIdx.x >= groups * kGroup) {
      if constexpr (groups > 1) give_registers<40>();
      if (threadIdx.x < groups * kGroup + 32) produce(maps, box, op, alive, ring);
    } else {
      if constexpr (groups > 1) take_registers<232>();
      Dealer<rows_of(groups)> dealer;
      Unit unit;
      int i = 0;
      for (int index = int(blockIdx.x); dealer.find(op, alive, index, unit); index += int(gridDim.x)) {
        const Tile<rows_of(groups)> tile(op, alive, unit);
        Attend<dim, groups> attend(ring, tile);
        attend.keys(i);
        attend.finish();
      }
    }
  }
}

TensorMap map_of(const Tensor& cache, int box) {
  const int64_t dim = cache.dims[3], page = cache.dims[2] * dim, all = cache.dims[1] * page;
  return tensor_map<5>(cache.as<const bf16>(), {dim, cache.dims[2], cache.dims[1], cache.dims[0], 1},
                       {1, dim, page, all, cache.dims[0] * all}, {kBoxColumns, box, 1, 1, 1});
}

template <int dim, int groups>
void start(const Attention& op, const Gpu& gpu) {
  const int box = box_rows(op.page_size());
  const int64_t most = most_units(op, rows_of(groups)), blocks = int64_t{groups == 1 ? 2 : 1} * gpu.chip->sms;
  const Shape shape{dim3(unsigned(most < blocks ? most : blocks)), dim3(threads_of(groups)),
                    Ring<dim, groups>::bytes(), 1, gpu.dependent()};
  launch(attention_sm90_kernel<dim, groups>, Attention::name, shape, gpu.stream,
         Maps{map_of(op.k, box), map_of(op.v, box)}, box, Arguments(op, gpu), live_of(op.q));
}

}  // namespace

void run_sm90(const Attention& op, const Gpu& gpu) {
  const bool decodes = op.q.dims[0] <= op.kvLength.dims[0];  // a row a sequence
  if (op.head_dim() == 64) return decodes ? start<64, 1>(op, gpu) : start<64, 2>(op, gpu);
  decodes ? start<128, 1>(op, gpu) : start<128, 2>(op, gpu);
}

}  // namespace cria::CRIA_MACHINE
