// linear_tile.h - the inside of linear.cc: operands, prefetching, and the one sum of products that every path shares.
#pragma once
#include "linear.h"
#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {

// The register tile: kRows weights x kTokens tokens of accumulators, a register for each token and one for a weight.
// 8 x 3 + 3 + 1 of 32 registers, or 4 x 3 + 3 + 1 of 16: kRows x kTokens FMAs for kRows + kTokens loads, and more
// independent sums than FMAs are in flight (4 cycles x 2 a cycle).
constexpr int kRows = kLanes == 16 ? 8 : 4;
constexpr int kTokens = 3;

// Bytes of a segment of a row in a panel. kRows of them are 32 KB of a 48 KB L1, or 16 of 32; the shuffles of a sum of
// lanes (three or four a segment) stay small beside its 64 FMAs or more.
constexpr int64_t kSegmentBytes = 4096;

// Tokens in a panel of x. A segment of all of them shall stay in L2: 0.6 MB where AVX-512 machines have 1 or 2.
constexpr int64_t kChunk = kLanes == 16 ? 144 : 96;

// Rows of weights read side by side when at most kTokens tokens make memory the only limit.
constexpr int kStreams = 4;

// Up to here both operands are converted in every tile, which costs less than preparing panels (measured).
constexpr int64_t kFew = kLanes == 16 ? 12 : 6;

// Weight rows that a thread takes at once. Few tokens: at least so many, see unit_of. Many: long, as a segment of x
// comes into L2 once a unit, but several units for every thread.
constexpr int64_t kFewUnit = 32, kManyUnit = 256, kUnitsPerThread = 8;

// How a step of K is multiplied. Operand: the vectors of a step, which are kLanes x 4 bytes each.
struct Fma {
  using Operand = vf;
  static constexpr int64_t kStep = 2 * kLanes;  // elements
  static constexpr int kOperands = 2;           // the even elements, the odd ones
  static constexpr int64_t kSegment = kSegmentBytes / 4;

  template <int half, class T>
  CRIA_INLINE static vf read(const T* p) {
    return half == 0 ? load_even(p) : load_odd(p);
  }
  CRIA_INLINE static vf accumulate(vf sum, vf a, vf b) { return fma(a, b, sum); }
};
#ifdef __AVX512BF16__
struct Dot {
  using Operand = __m512bh;
  static constexpr int64_t kStep = 32;
  static constexpr int kOperands = 1;
  static constexpr int64_t kSegment = kSegmentBytes / 2;

  template <int>
  CRIA_INLINE static __m512bh read(const bf16* p) {
    return load_as<__m512bh>(p);
  }
  CRIA_INLINE static vf accumulate(vf sum, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(sum, a, b); }
};
using ForBf16 = Dot;
#else
using ForBf16 = Fma;
#endif
static_assert(Fma::kSegment % Fma::kStep == 0 && ForBf16::kSegment % ForBf16::kStep == 0);

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// --- Operands: where(i, step) is the vector of row i at a step of K

// n rows in memory.
template <class M, class T, int n>
struct Raw {
  const T* row[n];
  template <int half>
  CRIA_INLINE typename M::Operand at(int i, int64_t step) const {
    return M::template read<half>(row[i] + step * M::kStep);
  }
};
// n rows in a panel: [steps][kOperands][n] vectors, in the order of use.
template <class M, int n>
struct Panel {
  const std::byte* data;
  template <int half>
  CRIA_INLINE typename M::Operand at(int i, int64_t step) const {
    using Operand = typename M::Operand;
    return load_as<Operand>(data + ((step * M::kOperands + half) * n + i) * int64_t(sizeof(Operand)));
  }
};
template <class M>
constexpr int64_t kStepBytes = M::kOperands * int64_t(sizeof(typename M::Operand));  // of a row in a panel

template <class M, int half, int n, class T>
CRIA_INLINE void pack_half(std::byte* panel, int64_t step, int i, const T* p) {
  const auto v = M::template read<half>(p);
  store_as(panel + ((step * M::kOperands + half) * n + i) * int64_t(sizeof v), v);
}
template <class M, int n, class T>
CRIA_INLINE void pack_step(std::byte* panel, int64_t step, int i, const T* p) {
  pack_half<M, 0, n>(panel, step, i, p);
  if constexpr (M::kOperands == 2) pack_half<M, 1, n>(panel, step, i, p);
}
// The elements after the last whole step of a row, and zeros.
template <class M, int n, class T>
CRIA_INLINE void pack_rest(std::byte* panel, int64_t step, int i, const T* p, int64_t count) {
  T filled[M::kStep];
  std::memset(filled, 0, sizeof filled);
  std::memcpy(filled, p, size_t(count) * sizeof(T));
  pack_step<M, n>(panel, step, i, filled);
}
// Columns [0, count) of n rows into a panel.
template <class M, int n, class T>
CRIA_INLINE void pack(std::byte* panel, const T* const (&row)[n], int64_t count) {
  const int64_t steps = count / M::kStep, rest = count % M::kStep;
  for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 8
    for (int i = 0; i < n; i++) pack_step<M, n>(panel, s, i, row[i] + s * M::kStep);
  }
  if (rest)
    for (int i = 0; i < n; i++) pack_rest<M, n>(panel, steps, i, row[i] + steps * M::kStep, rest);
}

// The weights after those in use, asked for step by step while a tile is computed: requests in one burst would fill the
// few places that a core has for them, and compute nothing meanwhile. Into L2: L1 is full.
struct Ahead {
  uintptr_t row;     // maybe nobody's address: a prefetch does not mind
  uintptr_t stride;  // bytes from row to row
  int64_t rows;

  CRIA_INLINE void request(int64_t offset) const {
    for (int64_t i = 0; i < rows; i++)
      __builtin_prefetch(  // NOLINTNEXTLINE(performance-no-int-to-ptr): a pointer must not leave its array, this may
          reinterpret_cast<const void*>(row + uintptr_t(i) * stride + uintptr_t(offset)), 0, 2);
  }
  void next() { row += uintptr_t(rows) * stride; }
};

struct Nothing {
  CRIA_INLINE void request(int64_t) const {}
};

// --- The sum

template <class M, int half, int tokens, int rows, class W, class X>
CRIA_INLINE void accumulate(vf (&sum)[tokens][rows], const W& w, const X& x, int64_t step) {
  typename M::Operand xs[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) xs[t] = in_register(x.template at<half>(t, step));
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
    const auto ws = in_register(w.template at<half>(r, step));
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) sum[t][r] = M::accumulate(sum[t][r], ws, xs[t]);
    still_used(ws);
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) still_used(xs[t]);
}
template <class M, int tokens, int rows, class W, class X, class P>
CRIA_INLINE void accumulate_steps(vf (&sum)[tokens][rows], const W& w, const X& x, int64_t steps, const P& ahead) {
  for (int64_t s = 0; s < steps; s++) {
    ahead.request(s * M::kStep * 2);
    accumulate<M, 0>(sum, w, x, s);
    if constexpr (M::kOperands == 2) accumulate<M, 1>(sum, w, x, s);
  }
}
// to[t * stride + r] += the sum of a segment. The first segment is added to zero.
template <int tokens, int rows>
CRIA_INLINE void add_segment(float* to, int64_t stride, const vf (&sum)[tokens][rows]) {
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
    for (int r = 0; r < rows; r += 4) {
      float* p = to + t * stride + r;
      store_as(p, load_as<f4>(p) + hsum4(sum[t][r], sum[t][r + 1], sum[t][r + 2], sum[t][r + 3]));
    }
}

// y[t, n .. n + count) = add + sum, rounded to bf16 where y is.
CRIA_INLINE void write(const Linear& op, int64_t t, int64_t n, const float* sum, int64_t count) {
  const int64_t at = t * op.weight.rows + n;
  const float* add = op.add.rank ? static_cast<const float*>(op.add.data) + at : nullptr;
  for (int64_t i = 0; i < count; i++) {
    const float v = add ? add[i] + sum[i] : sum[i];
    if (op.y.dtype == DType::f32)
      store(static_cast<float*>(op.y.data) + at + i, v);
    else
      store(static_cast<bf16*>(op.y.data) + at + i, v);
  }
}

CRIA_INLINE const bf16* find_row(const Weight& w, int64_t n) {
  const RowBlock* block = w.blocks;
  while (n >= block->rows) n -= block++->rows;
  return block->data + n * w.cols;
}

// Weight rows [first, first + count) of the matrix; places beyond repeat the last row, and nobody looks at their sums.
CRIA_INLINE void find_rows(const bf16* (&row)[kRows], const Weight& w, int64_t first, int64_t count) {
  const RowBlock* block = w.blocks;
  int64_t in_block = first;
  for (int i = 0; i < kRows; i++) {
    if (i > 0 && i >= count) {
      row[i] = row[i - 1];
      continue;
    }
    while (in_block >= block->rows) in_block -= block++->rows;
    row[i] = block->data + in_block++ * w.cols;
  }
}

// f(a group of `tokens` tokens), with the number as a constant.
template <int size = kTokens, class F>
CRIA_INLINE void with_constant(int64_t tokens, F f) {
  if constexpr (size > 1)
    if (tokens < size) return with_constant<size - 1>(tokens, f);
  f(std::integral_constant<int, size>{});
}

}  // namespace cria::CRIA_ISA
