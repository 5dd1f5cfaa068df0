// rope_append.cuh - one pair of one head, for rope_append.cu and for linears that end with it.
#pragma once
#include "../machine/simt.h"
#include "rope_append.h"

namespace cria::CRIA_MACHINE {

struct Rope {
  bf16 *q, *k, *v;
  const int32_t *positions, *slots;
  const float* inv_freq;
  int heads, kv_heads, page_size, dim, all_slots;

  Rope() = default;
  // q: where the rotated queries go.
  Rope(const RopeAppend& op, bf16* q_, int64_t heads_)
      : q(q_),
        k(op.k.as<bf16>()),
        v(op.v.as<bf16>()),
        positions(op.positions.as<const int32_t>()),
        slots(op.slots.as<const int32_t>()),
        inv_freq(op.invFreq.as<const float>()),
        heads(int(heads_)),
        kv_heads(int(op.kv_heads())),
        page_size(int(op.page_size())),
        dim(int(op.head_dim())),
        all_slots(int(op.k.dims[0] * op.page_size())) {}

  CRIA_DEVICE void angle(int64_t token, int d, float& cosine, float& sine) const {
    sincosf(float(positions[token]) * inv_freq[d], &sine, &cosine);
  }

  // Elements d and d + dim / 2 of a head: of q, then k, then v. Rotated and rounded once; v as it is.
  CRIA_DEVICE void put(int64_t token, int head, int d, bf16 first, bf16 second, float cosine, float sine) const {
    bf16* to = q + (token * heads + head) * dim;
    if (head >= heads) {
      const int slot = slots[token];
      const bool kept = guard(slot >= 0 && slot < all_slots);
      if (!kept) return;
      const bool value = head >= heads + kv_heads;
      const int kv = head - heads - (value ? kv_heads : 0);
      // [pages, kvHeads, pageSize, headDim]
      to = (value ? v : k) + ((int64_t{slot / page_size} * kv_heads + kv) * page_size + slot % page_size) * dim;
      if (value) {
        to[d] = first;
        to[d + dim / 2] = second;
        return;
      }
    }
    const float a = float(first), b = float(second);
    to[d] = bf16(fused(a, cosine, -product(b, sine)));
    to[d + dim / 2] = bf16(fused(b, cosine, product(a, sine)));
  }
};

}  // namespace cria::CRIA_MACHINE
