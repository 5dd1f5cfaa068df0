// linear_epilogue.cuh - what both families of linear kernels share: the order of weight rows in a tile, and what
// becomes of the sums.
//
// Where a linear ends with swiglu or rope, two rows of the weight are needed together: gate and up, d and d + dim / 2
// of a head. A tile takes eight of the first and eight of the second in turn, so that a thread, whose fragments have
// rows g and g + 8, has both.
#pragma once
#include "../machine/gpu.h"
#include "../machine/tile/vectors.h"
#include "linear.h"
#include "rms_norm.h"
#include "rope_append.cuh"
#include "swiglu.cuh"

namespace cria::CRIA_MACHINE {

// Rows among which pairs lie: all of swiglu, a head of rope; 0: rows keep their order.
inline int64_t period_of(const Linear& op) {
  return op.then == Linear::Then::swiglu ? op.weight.rows : op.then == Linear::Then::rope ? op.rope.head_dim() : 0;
}
// The pair, counted within its period, of a row of the tiles.
constexpr int64_t pair_at(int64_t in) { return in / 16 * 8 + in % 8; }
// Which row of the weight is row `at` of the tiles.
constexpr int64_t row_of(int64_t at, int64_t period) {
  if (period == 0) return at;
  const int64_t in = at % period;
  return at - in + pair_at(in) + (in % 16 < 8 ? 0 : period / 2);
}

constexpr bool pairs_up(int64_t rows, int64_t period) {
  int64_t sum = 0;
  for (int64_t at = 0; at < rows; at++) {
    const int64_t row = row_of(at, period);
    if (row / period != at / period || (at % 16 < 8 && row_of(at + 8, period) != row + period / 2)) return false;
    sum += row;
  }
  return sum == rows * (rows - 1) / 2;
}
static_assert(pairs_up(192, 64) && pairs_up(384, 128) && pairs_up(48, 48) && pairs_up(272, 272));

struct Epilogue {
  const float* add;  // or nullptr
  float* y_f32;      // or nullptr
  bf16* y_bf16;
  int rows;  // of the weight
  Linear::Then then;
  Rope rope;

  explicit Epilogue(const Linear& op)
      : add(op.add ? op.add.as<const float>() : nullptr),
        y_f32(op.y.dtype == DType::f32 ? op.y.as<float>() : nullptr),
        y_bf16(op.y.dtype == DType::f32 ? nullptr : op.y.as<bf16>()),
        rows(int(op.weight.rows)),
        then(op.then) {
    if (then == Linear::Then::rope) rope = Rope(op.rope, y_bf16, op.y.dims[1]);
  }

  // What is known of rows `at` and at + 8 of the tiles (at % 16 < 8), whatever the token.
  struct Rows {
    int at;
    bool first, second;  // whether they exist
    int head, d;         // of rope; d: of swiglu, too
  };
  CRIA_DEVICE Rows rows_at(int at) const {
    Rows p{at, guard(at < rows), false, 0, 0};
    if (then == Linear::Then::nothing) p.second = guard(at + 8 < rows);
    if (then == Linear::Then::swiglu) p.d = int(pair_at(at));
    if (then == Linear::Then::rope) {
      const int in = at % rope.dim;
      p.head = at / rope.dim;
      p.d = int(pair_at(in));
    }
    return p;
  }
  // The sums of those rows for a token that is alive. ropes: whether that may be asked for.
  template <bool ropes>
  CRIA_DEVICE void finish(const Rows& p, int64_t token, float first, float second) const {
    if (then == Linear::Then::nothing) {
      if (p.first) put(token * rows + p.at, first);
      if (p.second) put(token * rows + p.at + 8, second);
      return;
    }
    if (!p.first) return;
    const bf16 a(first), b(second);
    if (then == Linear::Then::swiglu) {
      y_bf16[token * (rows / 2) + p.d] = silu_times(a, b);
    } else if constexpr (ropes) {
      float cosine = 1, sine = 0;
      if (p.head < rope.heads + rope.kv_heads) rope.angle(token, p.d, cosine, sine);
      rope.put(token, p.head, p.d, a, b, cosine, sine);
    }
  }

 private:
  CRIA_DEVICE void put(int64_t at, float sum) const {
    const float y = add ? add[at] + sum : sum;
    if (y_f32)
      y_f32[at] = y;
    else
      y_bf16[at] = bf16(y);
  }
};

// Up to here a linear rotates itself. With more tokens an angle for each of them and each row costs more than a kernel
// that finds it once for all heads.
constexpr int64_t kRopeTokens = 64;

// linear_sm90.cu: the same with TMA and wgmma, on sm_90a.
size_t workspace_sm90(const Linear& op, const Chip& chip);
void run_sm90(const Linear& op, const Gpu& gpu);

// Where the norm is no part of the kernel it has one of its own, and its result lies at the start of the workspace.
void run(const RmsNorm& op, const Gpu& gpu);
void run(const RopeAppend& op, const Gpu& gpu);
inline size_t norm_bytes(const Linear& op) { return op.norm.rank ? size_t(op.x.count()) * sizeof(bf16) : 0; }
inline Linear normalised(const Linear& op, const Gpu& gpu) {
  if (!op.norm.rank) return op;
  RmsNorm norm;
  norm.x = op.x;
  norm.weight = op.norm;
  norm.eps = op.eps;
  norm.y = op.x;
  norm.y.dtype = DType::bf16;
  norm.y.data = gpu.workspace;
  run(norm, gpu);
  Linear plain = op;
  plain.x = norm.y;
  plain.norm = {};
  return plain;
}

}  // namespace cria::CRIA_MACHINE
