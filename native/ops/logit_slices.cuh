// logit_slices.cuh - a row of logits in slices, which a warp looks at once each: the largest logit and the sum of
// e^(logit - largest). For sample.cu and logprobs.cu, which so find the same log-probabilities.
//
// Slices, their sums and the order in which those are added depend on the vocabulary alone.
#pragma once
#include "../machine/gpu.h"
#include "../machine/tile/reduce.h"
#include "../machine/tile/vectors.h"
#include "sample_numbers.cuh"

namespace cria::CRIA_MACHINE {
namespace {

constexpr unsigned kMostThreads = 512, kFewThreads = 128, kMostWarps = kMostThreads / 32;
constexpr int64_t kSlice = 256;  // logits
constexpr int kEach = 8;         // of a lane

// What is known of a slice.
struct alignas(8) Slice {
  uint64_t first;  // key of the largest logit, then the complement of the lowest id that has it; all ones: NaN
  double value;    // of the best draw in this slice or an earlier one of its warp
  uint32_t id;     // of that
  float sum;       // of e^(logit - largest)
  CRIA_DEVICE uint32_t key() const { return uint32_t(first >> 32); }
};

struct Row {
  const float* logits;
  int64_t vocab;
  Slice* slices;

  CRIA_DEVICE int64_t count() const { return (vocab + kSlice - 1) / kSlice; }
  // The place of this lane's logit i of a slice: every 128 logits, 4 of each lane.
  CRIA_DEVICE static int64_t id_of(int64_t slice, int i) {
    return slice * kSlice + i / 4 * 128 + int64_t{threadIdx.x % 32} * 4 + i % 4;
  }
  // This lane's logits of a slice, -infinity after the last.
  CRIA_DEVICE void read(int64_t slice, float (&v)[kEach]) const {
    const bool aligned = reinterpret_cast<uintptr_t>(logits) % 16 == 0;
    CRIA_UNROLL for (int i = 0; i < kEach; i += 4) {
      const int64_t id = id_of(slice, i);
      if (aligned && id + 4 <= vocab) {
        const auto four = load<F32x4>(logits + id);
        for (int j = 0; j < 4; j++) v[i + j] = four.at[j];
        continue;
      }
      for (int j = 0; j < 4; j++) {
        const bool exists = guard(id + j < vocab);
        v[i + j] = exists ? logits[id + j] : kLowest;
      }
    }
  }
  // visit(logit) for this thread's logits in slices that have one with the key `least` or a larger one.
  template <class Visit>
  CRIA_DEVICE void each(uint32_t least, Visit visit) const {
    for (int64_t slice = threadIdx.x / 32; slice < count(); slice += blockDim.x / 32) {
      if (slices[slice].key() < least) continue;
      float v[kEach];
      read(slice, v);
      CRIA_UNROLL for (float logit : v) visit(logit);
    }
  }
};

// Looks at a slice.
CRIA_DEVICE Slice statistics(int64_t slice, const float (&v)[kEach]) {
  float highest = kLowest, sum = 0;
  int at = 0;
  bool nan = false;
  CRIA_UNROLL for (int i = 0; i < kEach; i++) {
    nan |= v[i] != v[i];
    if (v[i] > highest) highest = v[i], at = i;
  }
  const auto id = uint32_t(Row::id_of(slice, at));
  const uint64_t first = reduce_warp(nan ? ~uint64_t{0} : uint64_t{key_of(highest)} << 32 | uint32_t(~id), Max{});
  const float largest = value_of(uint32_t(first >> 32)), base = largest == kLowest ? 0.0f : largest;
  CRIA_UNROLL for (float logit : v) sum += expf(logit - base);
  return {first, -__builtin_inf(), ~0u, reduce_warp(sum, Sum{})};
}

// Of all slices, by the whole block: as Slice::first. shared: one a warp, nobody else's.
CRIA_DEVICE uint64_t first_of(const Row& row, uint64_t* shared) {
  uint64_t first = 0;
  for (int64_t s = threadIdx.x; s < row.count(); s += blockDim.x) first = Max{}(first, row.slices[s].first);
  return reduce_block(first, Max{}, shared);
}
// No NaN, no +infinity, and not all -infinity.
CRIA_DEVICE bool is_finite(uint64_t first) {
  const auto key = uint32_t(first >> 32);
  return key < key_of(__builtin_inff()) && key != key_of(kLowest);
}
// The sum of e^(logit - max) of the row, in the same way.
CRIA_DEVICE float sum_of(const Row& row, float max, float* shared) {
  float sum = 0;
  for (int64_t s = threadIdx.x; s < row.count(); s += blockDim.x) {
    const Slice slice = row.slices[s];
    sum += slice.sum * expf(value_of(slice.key()) - max);
  }
  return reduce_block(sum, Sum{}, shared);
}
CRIA_DEVICE float logprob_of(float logit, float max, float sum) { return (logit - max) - float(log(double(sum))); }

// --- For the host. logits: [out, vocab]

inline int64_t slices_of(const Tensor& logits) { return (logits.dims[1] + kSlice - 1) / kSlice; }
inline size_t bytes_of_slices(const Tensor& logits) {
  return size_t(logits.dims[0] * slices_of(logits)) * sizeof(Slice);
}
inline unsigned threads_of(const Tensor& logits) { return logits.dims[1] < 4096 ? kFewThreads : kMostThreads; }
// Of a row: all rows together about one for each multiprocessor.
inline unsigned blocks_of(const Tensor& logits, const Chip& chip) {
  const int64_t rows = logits.dims[0], slices = slices_of(logits), blocks = (chip.sms + rows - 1) / rows;
  return rows > kCounters ? 1 : unsigned(blocks < slices ? blocks : slices);
}

}  // namespace
}  // namespace cria::CRIA_MACHINE
