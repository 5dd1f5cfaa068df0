// adjust.cc - a thread copies a span of a row, masked, and then applies those of the row's edits whose tokens it
// copied.
#include "adjust.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

constexpr int64_t kSpan = 16384;  // logits
constexpr float kLowest = -__builtin_inff();

struct Row {
  const float* logits;
  float* y;
  const uint32_t* mask;  // nullptr: every token is allowed, or none is
  bool all;
  float repetition, frequency, presence;
  int64_t newest;  // -1: none

  Row(const Adjust& op, int64_t at) {
    const auto f32 = [&](const Tensor& t) { return static_cast<const float*>(t.data)[at]; };
    const auto i32 = [&](const Tensor& t) { return int64_t{static_cast<const int32_t*>(t.data)[at]}; };
    logits = static_cast<const float*>(op.logits.data) + at * op.logits.dims[1];
    y = static_cast<float*>(op.y.data) + at * op.logits.dims[1];
    const int64_t row = i32(op.maskRow), from = i32(op.newest);
    all = row < 0 || op.masks.rank == 0;
    mask = nullptr;
    if (!all && row < op.masks.dims[0]) mask = static_cast<const uint32_t*>(op.masks.data) + row * op.masks.dims[1];
    repetition = f32(op.repetition);
    frequency = f32(op.frequency);
    presence = f32(op.presence);
    newest = -1;
    if (op.previous.rank && from >= 0 && from < op.previous.dims[0])
      newest = static_cast<const int32_t*>(op.previous.data)[from];
  }

  float allowed(int64_t id) const { return all || (mask && (mask[id / 32] >> id % 32 & 1u)) ? logits[id] : kLowest; }
  // in_register: products are rounded, whatever is added to them.
  float edited(int64_t id, float bias, int64_t count) const {
    float logit = allowed(id) + bias;
    if (count < 0) return logit;
    logit = logit > 0 ? logit / repetition : in_register(logit * repetition);
    logit -= in_register(frequency * float(count));
    return count > 0 ? logit - presence : logit;
  }

  // [begin, end): begin is a multiple of 32.
  void copy(int64_t begin, int64_t end) const {
    if (all) {
      std::memcpy(y + begin, logits + begin, size_t(end - begin) * sizeof(float));
      return;
    }
    vu lane;  // its bit
    for (int l = 0; l < kLanes; l++) lane[l] = 1u << l;
    int64_t id = begin;
    for (; id + kLanes <= end; id += kLanes) {
      const uint32_t bits = mask ? mask[id / 32] >> id % 32 : 0u;
      store(y + id, ((vu{} + bits) & lane) != 0u ? load(logits + id) : splat(kLowest));
    }
    for (; id < end; id++) y[id] = allowed(id);
  }
};

CRIA_INLINE int64_t clamp(int64_t n, int64_t least, int64_t most) { return n < least ? least : n < most ? n : most; }

}  // namespace

size_t workspace(const Adjust&, int) { return 0; }

void run(const Adjust& op, Worker& w) {
  const int64_t vocab = op.logits.dims[1], spans = (vocab + kSpan - 1) / kSpan, edits = op.ids.dims[0];
  const auto* start = static_cast<const int32_t*>(op.start.data);
  const auto* ends = static_cast<const int32_t*>(op.end.data);
  const auto* ids = static_cast<const int32_t*>(op.ids.data);
  for (int64_t unit, next; w.take(unit, next, live_rows(op.logits) * spans);) {
    const int64_t at = unit / spans, begin = unit % spans * kSpan, end = clamp(begin + kSpan, 0, vocab);
    const Row row(op, at);
    row.copy(begin, end);
    // As if it were in no edit; the edit that it is in writes over it.
    if (row.newest >= begin && row.newest < end) row.y[row.newest] = row.edited(row.newest, 0, 1);
    const int64_t last = clamp(ends[at], 0, edits);
    for (int64_t e = clamp(start[at], 0, edits); e < last; e++) {
      const int64_t id = ids[e], count = static_cast<const int32_t*>(op.count.data)[e];
      if (id < begin || id >= end) continue;
      const int64_t times = id != row.newest ? count : count < 0 ? 1 : count + 1;
      row.y[id] = row.edited(id, static_cast<const float*>(op.bias.data)[e], times);
    }
  }
}

}  // namespace cria::CRIA_ISA
