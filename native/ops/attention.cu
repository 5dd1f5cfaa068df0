// attention.cu - one order of arithmetic for decode and prefill, on mma.sync.
//
// Keys come in blocks of 64: scores, a softmax in base 2, its weights (as the sum of two bf16) times values and ones. A
// warp has 16 rows; where a tile has no more, its four warps divide the scores by keys and the output by columns. To a
// row, keys that it does not see are weights of 0; as 0 times NaN is NaN, blocks with such keys are searched for values
// that are not finite, and each row then has an MMA of its own.
#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/mma.h"
#include "attention_units.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps, kRows = 16 * kWarps;

// Keys or values of a block, [kBlock, dim]: where 16 bytes lie, so that 8 rows of a column have different banks.
constexpr int swizzled(int dim, int row, int chunk) { return (row * dim + chunk * 8) ^ (row % 8 * 8); }
// Shared memory, in bytes: [2][keys, values][kBlock, dim], then [dim / 2][kThreads], then a flag.
constexpr size_t cache_bytes(int dim) { return size_t(4 * kBlock * dim) * sizeof(bf16); }
constexpr size_t merged_bytes(int dim) { return size_t(dim / 2 * kThreads) * sizeof(float); }
constexpr size_t shared_bytes(int dim) { return cache_bytes(dim) + merged_bytes(dim) + 16; }

// One block of keys and values on its way to shared memory. Keys that nobody sees, and keys without a page, are NaN;
// their values are 0.
template <int dim>
CRIA_DEVICE void load_block(bf16* to, const Arguments& op, const Unit& unit, int begin, int visible) {
  constexpr int kChunks = dim / 8, kStep = kThreads / kChunks, kEach = kBlock / kStep;
  const int chunk = int(threadIdx.x) % kChunks, first = int(threadIdx.x) / kChunks;
  const int32_t* table = op.page_table + int64_t{unit.seq} * op.max_pages;
  constexpr int kAtOnce = 4;  // pages are looked up together: one wait for memory
  for (int i = 0; i < kEach; i += kAtOnce) {
    int page[kAtOnce];
    for (int j = 0; j < kAtOnce; j++) {
      const int key = begin + first + (i + j) * kStep, p = key / op.page_size;
      page[j] = key < visible && p < op.max_pages ? table[p] : -1;
    }
    for (int j = 0; j < kAtOnce; j++) {
      const int row = first + (i + j) * kStep, at = swizzled(dim, row, chunk);
      const bool exists = page[j] >= 0 && page[j] < op.pages;
      const int64_t head = int64_t{exists ? page[j] : 0} * op.kv_heads + unit.head;
      const int64_t from = (head * op.page_size + (begin + row) % op.page_size) * dim + chunk * 8;
      const bool whole = guard(exists);
      if (!whole) store(to + at, Pack<uint32_t, 4>{{kAllLanes, kAllLanes, kAllLanes, kAllLanes}});
      for (int values = whole ? 0 : 1; values < 2; values++)
        copy_async_16(to + values * kBlock * dim + at, (values ? op.v : op.k) + from, exists);
    }
  }
  copy_async_commit();
}

constexpr uint32_t kOnes = 0x3f803f80;  // two bf16

// The bits of two bf16, of which the first `count` exist.
CRIA_DEVICE uint32_t first_of_pair(int count) { return count > 1 ? kAllLanes : count > 0 ? 0xffffu : 0u; }

// `team` warps share 16 rows. Thread: rows g and g + 8 as i = 0 and 1, columns 2t and 2t + 1 of every 8 of its warp's.
template <int dim, int team>
CRIA_DEVICE void attend(const Tile<kRows>& tile, uint8_t* shared) {
  constexpr int kTiles = kBlock / 8 / team, kColumns = dim / 8 / team;  // MMA tiles of 8 keys, of 8 columns
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int first_row = team == 1 ? warp * 16 : 0, first_tile = team == 1 ? 0 : warp * kTiles;
  const int first_column = team == 1 ? 0 : warp * kColumns * 8;
  bf16* const cache = reinterpret_cast<bf16*>(shared);
  float* const merged = reinterpret_cast<float*>(shared + cache_bytes(dim)) + threadIdx.x;
  float* const exchange =
      reinterpret_cast<float*>(shared + cache_bytes(dim) + merged_bytes(dim) / 2);  // [kBlock / 8, 32, 4]
  uint32_t* const flag = reinterpret_cast<uint32_t*>(shared + cache_bytes(dim) + merged_bytes(dim));

  const Arguments& op = tile.op;
  const Unit& unit = tile.unit;
  const int rows = tile.rows, begin = tile.begin, end = tile.end;
  const int visible[2] = {tile.visible_to(first_row + g), tile.visible_to(first_row + g + 8)};
  uint32_t query[dim / 16][4];
  CRIA_UNROLL
  for (int i = 0; i < 2; i++) {
    const bf16* const from = op.q + tile.place(first_row + g + 8 * i, dim) + 2 * t;
    CRIA_UNROLL
    for (int c = 0; c < dim / 8; c++) query[c / 2][i + c % 2 * 2] = load<uint32_t>(from + c * 8);
  }

  const int here = first_row < rows ? tile.visible_to(first_row + 15) : 0;

  float acc[kColumns][4] = {}, sum[4] = {}, highest[2] = {kLowest, kLowest};
  float sum_before[2], highest_before[2];
  if (begin < end) load_block<dim>(cache, op, unit, begin, tile.most);
  for (int block = begin; block < end; block += kBlock) {
    const int keys = block / kBlock % 2 * 2 * kBlock, values = keys + kBlock;  // their rows in the cache
    copy_async_wait<0>();
    sync_block();
    if (block + kBlock < end)
      load_block<dim>(cache + (block / kBlock + 1) % 2 * 2 * kBlock * dim, op, unit, block + kBlock, tile.most);

    if (block < here) {
      float score[kBlock / 8][4] = {};
      CRIA_UNROLL
      for (int c = 0; c < dim / 16; c++) CRIA_UNROLL
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        const int row = keys + (first_tile + n) * 8 + lane / 16 * 8 + lane % 8;
        ldmatrix(b, cache + swizzled(dim, row, c * 2 + lane / 8 % 2));
        mma_16x8x16(score[n], query[c], {b[0], b[1]});
        mma_16x8x16(score[n + 1], query[c], {b[2], b[3]});
      }
      if constexpr (team > 1) {
        CRIA_UNROLL
        for (int n = 0; n < kTiles; n++) {
          const F32x4 mine{{score[n][0], score[n][1], score[n][2], score[n][3]}};
          store(exchange + ((first_tile + n) * 32 + lane) * 4, mine);
        }
        sync_block();
        CRIA_UNROLL
        for (int n = 0; n < kBlock / 8; n++) {
          const auto all = load<F32x4>(exchange + (n * 32 + lane) * 4);
          CRIA_UNROLL
          for (int i = 0; i < 4; i++) score[n][i] = all.at[i];
        }
      }

      float top[2] = {highest[0], highest[1]};
      CRIA_UNROLL
      for (int n = 0; n < kBlock / 8; n++) CRIA_UNROLL
      for (int i = 0; i < 4; i++) {
        const bool sees = guard(block + n * 8 + 2 * t + i % 2 < visible[i / 2]);
        score[n][i] = sees ? fused(score[n][i], op.scale, 0.0f) : kLowest;
        top[i / 2] = Max{}(score[n][i], top[i / 2]);
      }
      CRIA_UNROLL
      for (int i = 0; i < 2; i++) {
        top[i] = reduce_warp(top[i], Max{}, 4);
        const float base = base_of(top[i]), factor = exp2_fast(highest[i] - base);
        highest[i] = top[i];
        CRIA_UNROLL
        for (int n = 0; n < kBlock / 8; n++) CRIA_UNROLL
        for (int j = 0; j < 2; j++) score[n][2 * i + j] = exp2_fast(score[n][2 * i + j] - base);
        CRIA_UNROLL
        for (int j = 0; j < 2; j++) {
          sum[2 * i + j] *= factor;
          CRIA_UNROLL
          for (int n = 0; n < kColumns; n++) acc[n][2 * i + j] *= factor;
        }
      }

      // Columns n and n + 1 of the values of 16 keys, as operands.
      const auto load_values = [&](uint32_t (&b)[4], int c, int n) {
        const int row = values + c * 16 + lane / 8 % 2 * 8 + lane % 8;
        ldmatrix<true>(b, cache + swizzled(dim, row, first_column / 8 + n + lane / 16));
      };
      bool by_rows = false;
      if (tile.visible_to(first_row) < tile.most && tile.visible_to(first_row) < block + kBlock) {
        uint32_t found = 0, b[4];
        CRIA_UNROLL
        for (int c = 0; c < kBlock / 16; c++) CRIA_UNROLL
        for (int n = 0; n < kColumns; n += 2) {
          load_values(b, c, n);
          CRIA_UNROLL
          for (int i = 0; i < 4; i++) found |= not_finite(b[i]);
        }
        by_rows = ballot(kAllLanes, found != 0) != 0;
      }

      CRIA_UNROLL
      for (int c = 0; c < kBlock / 16; c++) {
        uint32_t high[4], low[4];
        CRIA_UNROLL
        for (int i = 0; i < 4; i++) {
          const WeightPair w(score[2 * c + i / 2][i % 2 * 2], score[2 * c + i / 2][i % 2 * 2 + 1]);
          high[i] = w.high;
          low[i] = w.low;
        }
        mma_16x8x16(sum, high, {kOnes, kOnes});
        mma_16x8x16(sum, low, {kOnes, kOnes});
        const auto weigh = [&](float (&a)[4], uint32_t b0, uint32_t b1) {
          mma_16x8x16(a, high, {b0, b1});
          mma_16x8x16(a, low, {b0, b1});
        };
        CRIA_UNROLL
        for (int n = 0; n < kColumns; n += 2) {
          uint32_t b[4];
          load_values(b, c, n);
          if (!by_rows) {
            weigh(acc[n], b[0], b[1]);
            weigh(acc[n + 1], b[2], b[3]);
            continue;
          }
          for (int row = 0; row < 16 && first_row + row < rows; row++) {
            const int first = tile.visible_to(first_row + row) - (block + c * 16 + 2 * t);
            const uint32_t seen[2] = {first_of_pair(first), first_of_pair(first - 8)};
            CRIA_UNROLL
            for (int m = n; m < n + 2; m++) {
              float of_row[4] = {acc[m][0], acc[m][1], acc[m][2], acc[m][3]};
              weigh(of_row, b[m % 2 * 2] & seen[0], b[m % 2 * 2 + 1] & seen[1]);
              CRIA_UNROLL
              for (int i = 0; i < 4; i++) acc[m][i] = g + i / 2 * 8 == row ? of_row[i] : acc[m][i];
            }
          }
        }
      }
    }

    const int next = block + kBlock;
    if (unit.slot >= 0 || (next % kSplit != 0 && next < end)) continue;
    if (next > kSplit) CRIA_UNROLL
    for (int i = 0; i < 2; i++) {
      const Merge merge(highest_before[i], highest[i]);
      highest[i] = merge.highest;
      sum[2 * i] = merge(sum_before[i], sum[2 * i]);
      CRIA_UNROLL
      for (int n = 0; n < kColumns; n++) CRIA_UNROLL
      for (int j = 2 * i; j < 2 * i + 2; j++) acc[n][j] = merge(merged[(n * 4 + j) * kThreads], acc[n][j]);
    }
    if (next >= end) continue;
    CRIA_UNROLL
    for (int i = 0; i < 2; i++) {
      highest_before[i] = highest[i];
      sum_before[i] = sum[2 * i];
      highest[i] = kLowest;
    }
    CRIA_UNROLL
    for (int i = 0; i < 4; i++) {
      sum[i] = 0;
      CRIA_UNROLL
      for (int n = 0; n < kColumns; n++) {
        merged[(n * 4 + i) * kThreads] = acc[n][i];
        acc[n][i] = 0;
      }
    }
  }

  if (team > 1 && unit.slot >= 0) {
    CRIA_UNROLL
    for (int i = 0; i < 2; i++) {
      const int row = g + 8 * i;
      const bool used = guard(row < rows);
      if (!used) continue;
      CRIA_UNROLL
      for (int n = 0; n < kColumns; n++)
        store(tile.partial(unit.split, row, dim) + first_column + 2 * t + n * 8,
              Pack<float, 2>{{acc[n][2 * i], acc[n][2 * i + 1]}});
      if (warp == 0 && t == 0) store(tile.total(unit.split, row, dim), Pack<float, 2>{{highest[i], sum[2 * i]}});
    }
    if (last_to_arrive(op.counters + unit.seq * op.kv_heads + unit.head, unsigned(tile.seq.splits), flag))
      merge_splits<dim, kThreads>(tile);
    return;
  }

  CRIA_UNROLL
  for (int i = 0; i < 2; i++) {
    const bool used = guard(first_row + g + 8 * i < rows);
    if (!used) continue;
    bf16* const to = op.y + tile.place(first_row + g + 8 * i, dim) + first_column + 2 * t;
    const float inverse = 1.0f / sum[2 * i];
    CRIA_UNROLL
    for (int n = 0; n < kColumns; n++) {
      Pack<bf16, 2> out;
      for (int j = 0; j < 2; j++) out.at[j] = weighted_mean(acc[n][2 * i + j], inverse);
      store(to + n * 8, out);
    }
  }
  sync_block();
}

template <int dim>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(Arguments op, Live live) {
  CRIA_SHARED(uint8_t, shared);
  grid_launch_dependents();
  grid_wait();
  const int64_t alive = live_rows(live);
  Dealer<kRows> dealer;
  Unit unit;
  for (int index = int(blockIdx.x); dealer.find(op, alive, index, unit); index += int(gridDim.x)) {
    const Tile<kRows> tile(op, alive, unit);
    if (tile.rows > 16)
      attend<dim, 1>(tile, shared);
    else
      attend<dim, kWarps>(tile, shared);
  }
}

}  // namespace

size_t workspace(const Attention& op, const Chip& chip) {
  const int64_t group = op.heads() / op.kv_heads();
  return size_t(slots_of(op, chip) * group * (op.head_dim() + 2)) * sizeof(float);
}

void supports(const Attention& op) {
  if (op.head_dim() != 64 && op.head_dim() != 128)
    cria::fail("ERR_DEVICE_UNSUPPORTED", Attention::name, ": headDim is ", op.head_dim(),
               ", expected 64 or 128 on a GPU; the device 'cpu' takes any size");
}

void run(const Attention& op, const Gpu& gpu) {
  if (gpu.chip->arch == 90) return run_sm90(op, gpu);
  const int64_t most = most_units(op, kRows), blocks = int64_t{2} * gpu.chip->sms;
  const dim3 grid(unsigned(most < blocks ? most : blocks));
  const auto kernel = op.head_dim() == 64 ? attention_kernel<64> : attention_kernel<128>;
  const Shape shape{grid, dim3(kThreads), shared_bytes(int(op.head_dim())), 1, gpu.dependent()};
  launch(kernel, Attention::name, shape, gpu.stream, Arguments(op, gpu), live_of(op.q));
}

}  // namespace cria::CRIA_MACHINE
