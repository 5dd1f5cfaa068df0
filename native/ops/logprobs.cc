// logprobs.cc - one pass for the sum, one for the most probable tokens, which are kept in their order.
#include "logprobs.h"

#include "log_softmax.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

constexpr int kTop = Logprobs::kTop;

struct Top {
  float logits[kTop];
  int32_t ids[kTop];
  int count = 0;

  CRIA_INLINE bool takes(float logit) const { return count < kTop || logit > logits[kTop - 1]; }
  // Ids come in ascending order: among equals they stay in it.
  CRIA_INLINE void add(float logit, int64_t id) {
    if (!takes(logit)) return;
    int at = count < kTop ? count++ : kTop - 1;
    for (; at > 0 && logits[at - 1] < logit; at--) {
      logits[at] = logits[at - 1];
      ids[at] = ids[at - 1];
    }
    logits[at] = logit;
    ids[at] = int32_t(id);
  }
};

Top find(const float* logits, int64_t vocab) {
  constexpr int64_t kBlock = 16 * kLanes;  // logits of which mostly none is taken
  Top top;
  int64_t id = 0;
  for (; id + kBlock <= vocab; id += kBlock) {
    vf highest = load(logits + id);
    for (int64_t i = kLanes; i < kBlock; i += kLanes) highest = vmax(load(logits + id + i), highest);
    if (!top.takes(hmax(highest))) continue;
    for (int64_t i = id; i < id + kBlock; i++) top.add(logits[i], i);
  }
  for (; id < vocab; id++) top.add(logits[id], id);
  return top;
}

}  // namespace

size_t workspace(const Logprobs&, int) { return 0; }

void run(const Logprobs& op, Worker& w) {
  const int64_t vocab = op.logits.dims[1];
  for (int64_t begin, end; w.take(begin, end, live_rows(op.logits));)
    for (int64_t row = begin; row < end; row++) {
      const float* logits = static_cast<const float*>(op.logits.data) + row * vocab;
      int32_t id = static_cast<const int32_t*>(op.given.data)[row];
      if (id < 0) id = static_cast<const int32_t*>(op.sampled.data)[row];
      const Statistics s = look_at(logits, vocab);
      const Top top = s.finite ? find(logits, vocab) : Top{};
      const float none = s.finite ? -__builtin_inff() : __builtin_nanf("");
      static_cast<float*>(op.chosen.data)[row] =
          s.finite && id >= 0 && id < vocab ? s.logprob(logits[id]) : __builtin_nanf("");
      for (int i = 0; i < kTop; i++) {
        static_cast<int32_t*>(op.topIds.data)[row * kTop + i] = i < top.count ? top.ids[i] : -1;
        static_cast<float*>(op.top.data)[row * kTop + i] = i < top.count ? s.logprob(top.logits[i]) : none;
      }
    }
}

}  // namespace cria::CRIA_ISA
