// attention_sm90.cu - one order of arithmetic for decode and prefill, on TMA and wgmma: queries on the M side, from
// registers, keys and then values on the N side, from shared memory.
//
// One warp requests blocks of 64 keys and of their values, page by page; a ring of them is in flight. A warpgroup has
// 64 rows of a tile, and two of them share the keys of a prefill. Weights are the sum of two bf16; in a prefill they
// are multiplied with values while the next softmax is computed.
//
// To a row, keys that it does not see are weights of 0; as 0 times NaN is NaN, values of blocks with such keys are
// searched for some that are not finite. Those become 0, and the rows that see them NaN.
#include "attention_ring.cuh"

namespace cria::CRIA_MACHINE {
namespace {

// A thread's part of a warpgroup's 64 rows: rows g and g + 8 of its warp's 16, as r = 0 and 1, and columns 2 t and 2 t
// + 1 of every 8. Element 4 n + 2 r + j of scores and sums is column 8 n + 2 t + j of row r.
constexpr int row_at(int element) { return element / 2 % 2; }
constexpr int column_at(int element, int t) { return element / 4 * 8 + 2 * t + element % 2; }

template <int dim, int groups>
struct Attend {
  // Whether values are weighed during the next softmax. That takes too many registers for two blocks on a
  // multiprocessor, of which one works while the other waits.
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
  int all_see, warp_sees;                              // keys that all rows of the tile see, and all of the warp
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
    all_see = tile.visible_to(0);
    warp_sees = tile.visible_to(warp_row);
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
    const uint64_t keys = matrix_descriptor(ring.stage(i));
    CRIA_UNROLL
    for (int c = 0; c < dim / 16; c++)
      wgmma_64xnx16<kBlock, false>(score, query[c], advanced(keys, c / 4 * (kBlock * 64) + c % 4 * 16));
    wgmma_commit();
  }
  // Starts weights times the values of stage i.
  CRIA_DEVICE void multiply_values(int i) {
    ring.wait_full(i);
    wgmma_registers(acc);
    wgmma_registers(high);
    wgmma_registers(low);
    wgmma_fence();
    const uint64_t values = transposed_descriptor(ring.stage(i), kBlock * 64);
    CRIA_UNROLL
    for (int c = 0; c < kBlock / 16; c++) {
      wgmma_64xnx16<dim, true>(acc, high[c], advanced(values, c * 16 * 64));
      wgmma_64xnx16<dim, true>(acc, low[c], advanced(values, c * 16 * 64));
    }
    wgmma_commit();
  }

  CRIA_DEVICE void finish_values(int i) {
    wgmma_wait<0>();
    wgmma_registers(acc);
    ring.release(i);
  }

  // Scores become weights; factor: of the sums before.
  CRIA_DEVICE void softmax(int block, int i, float (&factor)[2]) {
    const uint32_t* const exists = ring.exists + i % ring.kStages * 2;
    const uint32_t there[2] = {exists[0], exists[1]};
    const bool all_seen = block + kBlock <= warp_sees && (there[0] & there[1]) == kAllLanes;
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
  CRIA_DEVICE bool is_partial(int block) const { return all_see < block + kBlock; }

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

  // All keys of the unit that this warpgroup's rows see. i: the stage of the next keys; the values are in the one
  // after.
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
          finish_values(i + 1);
        }
        multiply_keys(i + 2);
        if (kOverlaps) multiply_values(i + 1);
        wgmma_wait<kOverlaps ? 1 : 0>();
        wgmma_registers(score);
        const bool begins = block % kSplit == 0;
        if (begins) end_split();
        softmax(block, i + 2, factor);
        ring.release(i + 2);
        if (kOverlaps) finish_values(i + 1);
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
      finish_values(i + 1);
      i += 2;
    }
    for (; block < tile.end; block += kBlock, i += 2) {  // only the other group sees them
      ring.pass(i);
      if (is_partial(block)) clean(ring, i + 1);
      ring.pass(i + 1);
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
      give_registers<groups == 1 ? 48 : 56>();
      if (threadIdx.x < groups * kGroup + 32) produce(maps, box, op, alive, ring);
    } else {
      take_registers<groups == 1 ? 200 : 224>();
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
  const Shape shape{dim3(unsigned(most < blocks ? most : blocks)), dim3(threads_of(groups)), Ring<dim, groups>::bytes(),
                    1, gpu.dependent()};
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
