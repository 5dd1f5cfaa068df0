// rope_append.cc - rotation in float32, rounded once; v is copied.
#include "rope_append.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

// y = x rotated: pairs (d, d + half). cosines and sines are [half].
template <class T>
void rotate(T* y, const T* x, const float* cosines, const float* sines, int64_t half) {
  int64_t d = 0;
  for (; d + kLanes <= half; d += kLanes) {
    const vf a = load(x + d), b = load(x + half + d), c = load(cosines + d), s = load(sines + d);
    store(y + d, a * c - b * s);
    store(y + half + d, b * c + a * s);
  }
  if (const int64_t rest = half - d; rest > 0) {
    const vf a = load_part(x + d, rest), b = load_part(x + half + d, rest);
    const vf c = load_part(cosines + d, rest), s = load_part(sines + d, rest);
    store_part(y + d, a * c - b * s, rest);
    store_part(y + half + d, b * c + a * s, rest);
  }
}

template <class T>
void tokens(const RopeAppend& op, Worker& w) {
  const int64_t heads = op.heads(), kv_heads = op.kv_heads(), page = op.page_size(), dim = op.head_dim(),
                half = dim / 2;
  const auto* positions = static_cast<const int32_t*>(op.positions.data);
  const auto* slots = static_cast<const int32_t*>(op.slots.data);
  const auto* inv_freq = static_cast<const float*>(op.invFreq.data);
  float* cosines = reinterpret_cast<float*>(w.scratch) + w.index * dim;
  float* sines = cosines + half;

  for (int64_t begin, end; w.take(begin, end, live_rows(op.qkv));)
    for (int64_t t = begin; t < end; t++) {
      for (int64_t i = 0; i < half; i++) {
        const float angle = float(positions[t]) * inv_freq[i];
        cosines[i] = __builtin_cosf(angle);
        sines[i] = __builtin_sinf(angle);
      }
      const T* qkv = static_cast<const T*>(op.qkv.data) + t * op.qkv.dims[1];
      T* q = static_cast<T*>(op.q.data) + t * heads * dim;
      for (int64_t h = 0; h < heads; h++) rotate(q + h * dim, qkv + h * dim, cosines, sines, half);

      const int64_t slot = slots[t];
      if (slot < 0 || slot >= op.k.dims[0] * page) continue;
      const T* k = qkv + heads * dim;
      const T* v = k + kv_heads * dim;
      for (int64_t h = 0; h < kv_heads; h++) {
        // [pages, kvHeads, pageSize, headDim]
        const int64_t at = ((slot / page * kv_heads + h) * page + slot % page) * dim;
        rotate(static_cast<T*>(op.k.data) + at, k + h * dim, cosines, sines, half);
        std::memcpy(static_cast<void*>(static_cast<T*>(op.v.data) + at), v + h * dim, size_t(dim) * sizeof(T));
      }
    }
}

}  // namespace

size_t workspace(const RopeAppend& op, int threads) { return size_t(threads) * size_t(op.k.dims[3]) * sizeof(float); }

void run(const RopeAppend& op, Worker& w) {
  if (op.qkv.dtype == DType::bf16)
    tokens<bf16>(op, w);
  else
    tokens<float>(op, w);
}

}  // namespace cria::CRIA_ISA
