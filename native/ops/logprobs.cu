// logprobs.cu - no sort of the vocabulary: the 20 most probable tokens lie in the 20 slices with the largest maxima.
//
// As in sample.cu, warps of several blocks look at the slices of a row, and the last block to arrive puts them
// together. Its warps keep the largest keys that they see, of slices and then of tokens, in order, one in each lane; a
// key is a logit and the complement of an id, so that no two are equal.
#include "../machine/ptx/grid.h"
#include "../machine/tile/arrive.h"
#include "logit_slices.cuh"
#include "logprobs.h"

namespace cria::CRIA_MACHINE {
namespace {

constexpr int kTop = Logprobs::kTop;

struct Finding {
  const float* logits;
  const int32_t *sampled, *given;
  float* chosen;
  int32_t* top_ids;
  float* top;
  int64_t vocab;
  Slice* slices;  // [out, slices]
  uint32_t* counters;
  unsigned blocks;  // of a row
};

using Keys = uint64_t[32];  // of a warp
// No two uses share a member, which saves the barriers between them.
struct Shared {
  Keys slices[kMostWarps], tokens[kMostWarps];
  uint64_t first[kMostWarps];
  float sums[kMostWarps];
  uint32_t arrived;
};

// The 32 largest keys that a warp has seen, the largest in lane 0; 0: none.
struct Largest {
  uint64_t mine = 0;
  uint64_t least = 0;  // what is not larger is not among the kTop largest

  // Bitonic sequences of `run` lanes become sorted: the largest first where bit `run` of the lane is 0, last elsewhere.
  CRIA_DEVICE static uint64_t sorted(uint64_t key, unsigned run) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned bits = run / 2; bits > 0; bits /= 2) {
      const uint64_t other = shuffle_xor(kAllLanes, key, bits);
      const bool larger = ((lane & run) == 0) == ((lane & bits) == 0);
      if ((other > key) == larger) key = other;
    }
    return key;
  }
  // 32 keys, the smallest in lane 0.
  CRIA_DEVICE void add_sorted(uint64_t key) { mine = sorted(Max{}(mine, key), 32); }
  CRIA_DEVICE void add(uint64_t key) {
    if (ballot(kAllLanes, key > least) == 0) return;
    for (unsigned run = 2; run <= 32; run *= 2) key = sorted(key, run);
    add_sorted(shuffle_xor(kAllLanes, key, 31));
    const uint64_t last = shuffle(kAllLanes, mine, kTop - 1);
    least = Max{}(least, last);
  }
  // Of all warps of the block. shared: one a warp, nobody else's.
  CRIA_DEVICE void merge(Keys* shared) {
    const unsigned lane = threadIdx.x % 32;
    shared[threadIdx.x / 32][lane] = mine;
    sync_block();
    mine = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) add_sorted(shared[w][31 - lane]);
  }
};

CRIA_DEVICE Largest largest_slices(const Row& row, Keys* shared) {
  Largest slices;
  for (int64_t first = threadIdx.x / 32 * 32; first < row.count(); first += blockDim.x) {
    const int64_t s = first + threadIdx.x % 32;
    const bool exists = guard(s < row.count());
    slices.add(exists ? row.slices[s].first : 0);
  }
  slices.merge(shared);
  return slices;
}

CRIA_DEVICE Largest largest_tokens(const Row& row, const Largest& slices, Keys* shared) {
  Largest tokens;
  const uint64_t last = shuffle(kAllLanes, slices.mine, kTop - 1);
  if (last > 0) tokens.least = last - 1;
  for (unsigned rank = threadIdx.x / 32; rank < kTop; rank += blockDim.x / 32) {
    const uint64_t first = shuffle(kAllLanes, slices.mine, rank);
    if (first == 0) break;
    const int64_t slice = uint32_t(~first) / kSlice;
    float v[kEach];
    row.read(slice, v);
    CRIA_UNROLL for (int i = 0; i < kEach; i++) {
      const int64_t id = Row::id_of(slice, i);
      const bool exists = guard(id < row.vocab);
      tokens.add(exists ? uint64_t{key_of(v[i])} << 32 | uint32_t(~id) : 0);
    }
  }
  tokens.merge(shared);
  return tokens;
}

// 2 blocks a multiprocessor: for three, where ptxas aims of itself, it spills.
__global__ void __launch_bounds__(kMostThreads, 2) logprobs_kernel(Finding op, Live live) {
  CRIA_SHARED(Shared, shared);
  grid_launch_dependents();
  grid_wait();
  const int64_t at = blockIdx.x / op.blocks;
  const bool alive = guard(is_live(live, at));
  if (!alive) return;
  Row row{op.logits + at * op.vocab, op.vocab, op.slices};
  row.slices += at * row.count();
  const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32, part = blockIdx.x % op.blocks;
  for (int64_t slice = part + int64_t{op.blocks} * warp; slice < row.count(); slice += int64_t{op.blocks} * warps) {
    float v[kEach];
    row.read(slice, v);
    const Slice found = statistics(slice, v);
    if (threadIdx.x % 32 == 0) row.slices[slice] = found;
  }
  if (op.blocks > 1) {
    if (!last_to_arrive(op.counters + at, op.blocks, &shared->arrived)) return;
  } else {
    sync_block();
  }

  const uint64_t first = first_of(row, shared->first);
  const unsigned lane = threadIdx.x % 32;
  const int64_t to = at * kTop + lane;
  if (!is_finite(first)) {
    if (threadIdx.x == 0) op.chosen[at] = __builtin_nanf("");
    if (threadIdx.x >= kTop) return;
    op.top_ids[to] = -1;
    op.top[to] = __builtin_nanf("");
    return;
  }
  const float max = value_of(uint32_t(first >> 32)), sum = sum_of(row, max, shared->sums);
  const Largest slices = largest_slices(row, shared->slices);
  const uint64_t key = largest_tokens(row, slices, shared->tokens).mine;
  if (threadIdx.x >= kTop) return;
  const uint32_t id = ~uint32_t(key);
  op.top_ids[to] = key > 0 ? int32_t(id) : -1;
  op.top[to] = key > 0 ? logprob_of(row.logits[id], max, sum) : kLowest;
  if (threadIdx.x > 0) return;
  const int32_t one = op.given[at] >= 0 ? op.given[at] : op.sampled[at];
  const bool known = guard(one >= 0 && one < op.vocab);
  op.chosen[at] = known ? logprob_of(row.logits[one], max, sum) : __builtin_nanf("");
}

}  // namespace

size_t workspace(const Logprobs& op, const Chip&) { return bytes_of_slices(op.logits); }
void supports(const Logprobs&) {}

void run(const Logprobs& op, const Gpu& gpu) {
  const Finding finding{op.logits.as<const float>(),
                        op.sampled.as<const int32_t>(),
                        op.given.as<const int32_t>(),
                        op.chosen.as<float>(),
                        op.topIds.as<int32_t>(),
                        op.top.as<float>(),
                        op.logits.dims[1],
                        reinterpret_cast<Slice*>(gpu.workspace),
                        gpu.counters,
                        blocks_of(op.logits, *gpu.chip)};
  const Shape shape{dim3(unsigned(op.logits.dims[0]) * finding.blocks), dim3(threads_of(op.logits)), sizeof(Shared), 1,
                    gpu.dependent()};
  launch(logprobs_kernel, Logprobs::name, shape, gpu.stream, finding, live_of(op.logits));
}

}  // namespace cria::CRIA_MACHINE
