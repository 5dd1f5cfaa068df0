// swiglu.cc - silu(g) u = g u / (1 + e^-g), in float32, rounded once.
#include "swiglu.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

CRIA_INLINE vf silu_times(vf gate, vf up) { return gate / (1.0f + vexp(-gate)) * up; }

// Columns [begin, end) of one row.
template <class T>
void span(T* y, const T* gate, const T* up, int64_t begin, int64_t end) {
  int64_t d = begin;
  for (; d + kLanes <= end; d += kLanes) store(y + d, silu_times(load(gate + d), load(up + d)));
  if (d < end) store_part(y + d, silu_times(load_part(gate + d, end - d), load_part(up + d, end - d)), end - d);
}

template <class T>
void rows(const Swiglu& op, Worker& w) {
  constexpr int64_t kSpan = 2048;  // columns a thread takes at once
  const int64_t hidden = op.y.dims[1], spans = (hidden + kSpan - 1) / kSpan;
  for (int64_t unit, next; w.take(unit, next, live_rows(op.gateUp) * spans);) {
    const int64_t t = unit / spans, begin = unit % spans * kSpan;
    const T* gate = static_cast<const T*>(op.gateUp.data) + t * 2 * hidden;
    span(static_cast<T*>(op.y.data) + t * hidden, gate, gate + hidden, begin,
         begin + kSpan < hidden ? begin + kSpan : hidden);
  }
}

}  // namespace

size_t workspace(const Swiglu&, int) { return 0; }

void run(const Swiglu& op, Worker& w) {
  if (op.y.dtype == DType::bf16)
    rows<bf16>(op, w);
  else
    rows<float>(op, w);
}

}  // namespace cria::CRIA_ISA
