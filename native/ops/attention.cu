// attention.cu - one order of arithmetic for decode and prefill, on mma.sync.
//
// A tile is up to 64 packed rows, (token, query head of a group) pairs of one sequence and key/value head. Its keys
// come in blocks of 64 from key 0: scores, a softmax in base 2, its weights (as the sum of two bf16) times values and
// ones. Every 256 keys, a split, it begins anew; splits are merged in their order. A warp has 16 rows; where a tile has
// no more, its four warps divide the scores by keys and the output by columns. The splits of a sequence with one row go
// to different blocks, and the last of them merges. To a row, keys that it does not see are weights of 0; as 0 times
// NaN is NaN, blocks with such keys are searched for values that are not finite, and each row then has an MMA of its
// own.
#include "../machine/gpu.h"
#include "../machine/ptx/cp_async.h"
#include "../machine/ptx/grid.h"
#include "../machine/ptx/mma.h"
#include "../machine/tile/arrive.h"
#include "../machine/tile/reduce.h"
#include "../machine/tile/vectors.h"
#include "attention_units.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kBlock = 64;  // keys
static_assert(kRows == 16 * kWarps);

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

constexpr float kLowest = -__builtin_inff();
constexpr uint32_t kOnes = 0x3f803f80;  // two bf16

// How the sums over two sets of keys become one: highest scores a and b, factors of the sums.
struct Merge {
  float highest, of_a, of_b;
  CRIA_DEVICE Merge(float a, float b) : highest(a > b ? a : b) {
    const float base = highest == kLowest ? 0.0f : highest;
    of_a = exp2_fast(a - base);
    of_b = exp2_fast(b - base);
  }
  CRIA_DEVICE float operator()(float a, float b) const { return fused(b, of_b, a * of_a); }
};

// Bits 15 and 31: whether that one of two bf16 is infinite or NaN.
CRIA_DEVICE uint32_t not_finite(uint32_t pair) { return ((pair & 0x7f807f80u) + 0x00800080u) & 0x80008000u; }
// The bits of two bf16, of which the first `count` exist.
CRIA_DEVICE uint32_t first_of_pair(int count) { return count > 1 ? kAllLanes : count > 0 ? 0xffffu : 0u; }

CRIA_DEVICE uint32_t pair_of(bf16 low, bf16 high) { return uint32_t(low.bits) | uint32_t(high.bits) << 16; }

// `team` warps share 16 rows. Thread: rows g and g + 8 as i = 0 and 1, columns 2t and 2t + 1 of every 8 of its warp's.
template <int dim, int team>
CRIA_DEVICE void attend(const Arguments& op, const Sequence& seq, const Unit& unit, int rows, uint8_t* shared) {
  constexpr int kTiles = kBlock / 8 / team, kColumns = dim / 8 / team;  // MMA tiles of 8 keys, of 8 columns
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int first_row = team == 1 ? warp * 16 : 0, first_tile = team == 1 ? 0 : warp * kTiles;
  const int first_column = team == 1 ? 0 : warp * kColumns * 8;
  bf16* const cache = reinterpret_cast<bf16*>(shared);
  float* const merged = reinterpret_cast<float*>(shared + cache_bytes(dim)) + threadIdx.x;
  float* const exchange =
      reinterpret_cast<float*>(shared + cache_bytes(dim) + merged_bytes(dim) / 2);  // [kBlock / 8, 32, 4]
  uint32_t* const flag = reinterpret_cast<uint32_t*>(shared + cache_bytes(dim) + merged_bytes(dim));

  // Rows after the last repeat it, and are not written.
  const auto packed = [&](int row) { return unit.tile * kRows + (row < rows ? row : rows - 1); };
  const auto visible_to = [&](int row) { return seq.visible_to(packed(row) / op.group); };
  const auto place = [&](int row) {  // in q and y
    const int64_t token = seq.start + packed(row) / op.group;
    return ((token * op.kv_heads + unit.head) * op.group + packed(row) % op.group) * dim;
  };
  const int visible[2] = {visible_to(first_row + g), visible_to(first_row + g + 8)};
  uint32_t query[dim / 16][4];
  CRIA_UNROLL
  for (int i = 0; i < 2; i++) {
    const bf16* const from = op.q + place(first_row + g + 8 * i) + 2 * t;
    CRIA_UNROLL
    for (int c = 0; c < dim / 8; c++) query[c / 2][i + c % 2 * 2] = load<uint32_t>(from + c * 8);
  }

  const int most = visible_to(rows - 1), here = first_row < rows ? visible_to(first_row + 15) : 0;
  const int begin = unit.split * kSplit, end = unit.slot < 0 || most < begin + kSplit ? most : begin + kSplit;

  float acc[kColumns][4] = {}, sum[4] = {}, highest[2] = {kLowest, kLowest};
  float sum_before[2], highest_before[2];
  if (begin < end) load_block<dim>(cache, op, unit, begin, most);
  for (int block = begin; block < end; block += kBlock) {
    const int keys = block / kBlock % 2 * 2 * kBlock, values = keys + kBlock;  // their rows in the cache
    copy_async_wait<0>();
    sync_block();
    if (block + kBlock < end)
      load_block<dim>(cache + (block / kBlock + 1) % 2 * 2 * kBlock * dim, op, unit, block + kBlock, most);

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
        const float base = top[i] == kLowest ? 0.0f : top[i], factor = exp2_fast(highest[i] - base);
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
      if (visible_to(first_row) < most && visible_to(first_row) < block + kBlock) {
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
          const float a = score[2 * c + i / 2][i % 2 * 2], b = score[2 * c + i / 2][i % 2 * 2 + 1];
          const bf16 x(a), y(b);
          high[i] = pair_of(x, y);
          low[i] = pair_of(bf16(a - float(x)), bf16(b - float(y)));
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
            const int first = visible_to(first_row + row) - (block + c * 16 + 2 * t);
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

  // Where a row's results lie among the partials: its columns, and its highest score.
  const auto partial = [&](int split, int row) {
    return op.partials + (int64_t{unit.slot + split} * op.group + row) * dim + first_column + 2 * t;
  };
  const auto total = [&](int split, int row) {
    return op.partials + int64_t{op.slots} * op.group * dim + (int64_t{unit.slot + split} * op.group + row) * 2;
  };
  if (team > 1 && unit.slot >= 0) {
    CRIA_UNROLL
    for (int i = 0; i < 2; i++) {
      const int row = g + 8 * i;
      const bool used = guard(row < rows);
      if (!used) continue;
      CRIA_UNROLL
      for (int n = 0; n < kColumns; n++)
        store(partial(unit.split, row) + n * 8, Pack<float, 2>{{acc[n][2 * i], acc[n][2 * i + 1]}});
      if (warp == 0 && t == 0) store(total(unit.split, row), Pack<float, 2>{{highest[i], sum[2 * i]}});
    }
    if (!last_to_arrive(op.counters + unit.seq * op.kv_heads + unit.head, unsigned(seq.splits), flag)) return;
    CRIA_UNROLL
    for (int i = 0; i < 2; i++) {
      const int row = g + 8 * i < rows ? g + 8 * i : rows - 1;
      for (int split = 0; split < seq.splits; split++) {
        const auto other = load<Pack<float, 2>>(total(split, row));
        const Merge merge(split == 0 ? kLowest : highest[i], other.at[0]);
        highest[i] = merge.highest;
        sum[2 * i] = merge(split == 0 ? 0.0f : sum[2 * i], other.at[1]);
        CRIA_UNROLL
        for (int n = 0; n < kColumns; n++) {
          const auto columns = load<Pack<float, 2>>(partial(split, row) + n * 8);
          for (int j = 0; j < 2; j++) acc[n][2 * i + j] = merge(split == 0 ? 0.0f : acc[n][2 * i + j], columns.at[j]);
        }
      }
    }
  } else {
    sync_block();
  }

  CRIA_UNROLL
  for (int i = 0; i < 2; i++) {
    const bool used = guard(first_row + g + 8 * i < rows);
    if (!used) continue;
    bf16* const to = op.y + place(first_row + g + 8 * i) + first_column + 2 * t;
    const float inverse = 1.0f / sum[2 * i];  // of 0 where no key is seen: NaN
    CRIA_UNROLL
    for (int n = 0; n < kColumns; n++) {
      Pack<bf16, 2> out;
      CRIA_UNROLL
      for (int j = 0; j < 2; j++) out.at[j] = bf16(fused(acc[n][2 * i + j], inverse, 0.0f));  // never -0
      store(to + n * 8, out);
    }
  }
}

template <int dim>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(Arguments op, Live live) {
  CRIA_SHARED(uint8_t, shared);
  grid_launch_dependents();
  grid_wait();
  const int64_t alive = live_rows(live);
  Dealer dealer;
  Unit unit;
  for (int index = int(blockIdx.x); dealer.find(op, alive, index, unit); index += int(gridDim.x)) {
    const Sequence seq = sequence(op, alive, unit.seq);
    const int rest = seq.rows * op.group - unit.tile * kRows, rows = rest < kRows ? rest : kRows;
    if (rows > 16)
      attend<dim, 1>(op, seq, unit, rows, shared);
    else
      attend<dim, kWarps>(op, seq, unit, rows, shared);
  }
}

int64_t splits_of(const Attention& op) { return (op.pageTable.dims[1] * op.page_size() + 1 + kSplit - 1) / kSplit; }
int64_t slots_of(const Attention& op) {
  const int64_t slots = op.kvLength.dims[0] * op.kv_heads() * splits_of(op);
  return slots < kSlots ? slots : kSlots;
}

}  // namespace

size_t workspace(const Attention& op, const Chip&) {
  const int64_t group = op.heads() / op.kv_heads();
  return size_t(slots_of(op) * group * (op.head_dim() + 2)) * sizeof(float);
}

void supports(const Attention& op) {
  if (op.head_dim() != 64 && op.head_dim() != 128)
    cria::fail("ERR_DEVICE_UNSUPPORTED", Attention::name, ": headDim is ", op.head_dim(),
               ", expected 64 or 128 on a GPU; the device 'cpu' takes any size");
}

void run(const Attention& op, const Gpu& gpu) {
  const int64_t dim = op.head_dim(), group = op.heads() / op.kv_heads(), seqs = op.kvLength.dims[0];
  const Arguments arguments{op.y.as<bf16>(),
                            op.q.as<const bf16>(),
                            op.k.as<const bf16>(),
                            op.v.as<const bf16>(),
                            op.queryStart.as<const int32_t>(),
                            op.kvLength.as<const int32_t>(),
                            op.pageTable.as<const int32_t>(),
                            reinterpret_cast<float*>(gpu.workspace),
                            gpu.counters,
                            int(seqs),
                            int(op.kv_heads()),
                            int(group),
                            int(op.k.dims[0]),
                            int(op.page_size()),
                            int(op.pageTable.dims[1]),
                            int(slots_of(op)),
                            1.4426950408889634f / sqrtf(float(dim))};
  // Lengths are known to the device alone: blocks go on to further units, and leave when there is none.
  const int64_t most = op.kv_heads() * (op.q.dims[0] * group / kRows + seqs * (1 + splits_of(op)));
  const int64_t blocks = int64_t{2} * gpu.chip->sms;
  const dim3 grid(unsigned(most < blocks ? most : blocks));
  const auto kernel = dim == 64 ? attention_kernel<64> : attention_kernel<128>;
  const Shape shape{grid, dim3(kThreads), shared_bytes(int(dim)), 1, gpu.dependent()};
  launch(kernel, Attention::name, shape, gpu.stream, arguments, live_of(op.q));
}

}  // namespace cria::CRIA_MACHINE
