// linear.cc - y = x W^T on the CPU, in one summation order whatever the batch.
//
// The bits of y[t, n] depend on x[t, :], W[n, :], add[t, n] and the instruction set alone. K is cut into segments of
// kSegment elements; in each, one vector accumulator takes the products step by step (Fma: the even elements of a step,
// then the odd ones; Dot: the pairs), hsum4 adds its lanes, and the segment sums are added in order. A last partial
// step is filled with zeros. Both paths below do exactly this and differ only in where the operands come from:
//
//   few tokens   both straight from memory: the weights stream by once, nothing is prepared, no thread waits
//   many tokens  x is converted once into a panel (shared); each thread converts kRows weight rows x kSegment at a time
//                into a panel that stays in L1 and passes all tokens by it
#include "linear.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

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

// Up to here both operands are converted in every tile, which costs less than preparing panels (measured).
constexpr int64_t kFew = kLanes == 16 ? 12 : 6;

// Weight rows that a thread takes at once. Few tokens: short, so that all threads end together (2048 x 2048 on two
// threads: 32 units each). Many: long, as a segment of x comes into L2 once a unit, but several units for every thread.
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
      __builtin_prefetch(reinterpret_cast<const void*>(row + uintptr_t(i) * stride + uintptr_t(offset)), 0, 2);
  }
  void next() { row += uintptr_t(rows) * stride; }
};

// For up to kTokens tokens, when nothing but memory counts: the same rows 1 KB further on, into L1 (measured: 93 to 95% of
// a plain read loop, where 2 KB further on or into L2 reach 80). In the last KB of a row: the row of the next tile.
struct Near {
  static constexpr int64_t kDistance = 1024;
  const bf16* const* row;  // [kRows]
  int64_t rest;            // bytes from here to the end of the row
  uintptr_t jump;          // from the end of a row to the beginning of that of the next tile

  CRIA_INLINE void request(int64_t offset) const {
    const uintptr_t distance = uintptr_t(offset + kDistance) + (offset + kDistance < rest ? 0 : jump);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++) __builtin_prefetch(reinterpret_cast<const void*>(uintptr_t(row[r]) + distance), 0, 3);
  }
};
struct Nothing {
  CRIA_INLINE void request(int64_t) const {}
};

// --- The sum

template <class M, int half, int tokens, class W, class X>
CRIA_INLINE void accumulate(vf (&sum)[tokens][kRows], const W& w, const X& x, int64_t step) {
  typename M::Operand xs[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) xs[t] = in_register(x.template at<half>(t, step));
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    const auto ws = in_register(w.template at<half>(r, step));
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) sum[t][r] = M::accumulate(sum[t][r], ws, xs[t]);
    still_used(ws);
  }
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++) still_used(xs[t]);
}
template <class M, int tokens, class W, class X, class P>
CRIA_INLINE void accumulate_steps(vf (&sum)[tokens][kRows], const W& w, const X& x, int64_t steps, const P& ahead) {
  for (int64_t s = 0; s < steps; s++) {
    ahead.request(s * M::kStep * 2);
    accumulate<M, 0>(sum, w, x, s);
    if constexpr (M::kOperands == 2) accumulate<M, 1>(sum, w, x, s);
  }
}
// to[t * stride + r] += the sum of a segment. The first segment is added to zero.
template <int tokens>
CRIA_INLINE void add_segment(float* to, int64_t stride, const vf (&sum)[tokens][kRows]) {
#pragma GCC unroll 8
  for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r += 4) {
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

// Weight rows [first, first + count) of the matrix; places beyond repeat the last row, and nobody looks at their sums.
CRIA_INLINE void find_rows(const bf16* (&row)[kRows], const Weight& w, int64_t first, int64_t count) {
  const RowBlock* block = w.blocks;
  int64_t in_block = first;
  for (int i = 0; i < kRows; i++) {
    if (i >= count) {
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

// --- Few tokens

// to[t][r] += the sum over `count` columns of kRows weight rows and `tokens` rows of x.
template <class M, int tokens, class T, class P>
CRIA_INLINE void tile_in_place(float* to, const Raw<M, bf16, kRows>& w, const T* x, int64_t cols, int64_t count,
                               const P& ahead) {
  const int64_t steps = count / M::kStep, rest = count % M::kStep;
  Raw<M, T, tokens> xs;
  for (int t = 0; t < tokens; t++) xs.row[t] = x + t * cols;
  vf sum[tokens][kRows] = {};
  accumulate_steps<M>(sum, w, xs, steps, ahead);
  if (rest) {
    alignas(64) std::byte w_rest[kRows * kStepBytes<M>], x_rest[tokens * kStepBytes<M>];
    for (int r = 0; r < kRows; r++) pack_rest<M, kRows>(w_rest, 0, r, w.row[r] + steps * M::kStep, rest);
    for (int t = 0; t < tokens; t++) pack_rest<M, tokens>(x_rest, 0, t, xs.row[t] + steps * M::kStep, rest);
    accumulate_steps<M>(sum, Panel<M, kRows>{w_rest}, Panel<M, tokens>{x_rest}, 1, Nothing{});
  }
  add_segment(to, kRows, sum);
}

template <class M, class T>
void stream(const Linear& op, Worker& worker, int64_t tokens) {
  const int64_t cols = op.weight.cols;
  const T* x = static_cast<const T*>(op.x.data);
  const int64_t ahead_rows = ceil_div(kRows, ceil_div(tokens, kTokens));

  for (int64_t begin, end; worker.take(begin, end, op.weight.rows, kFewUnit);)
    for (int64_t n = begin; n < end; n += kRows) {
      Raw<M, bf16, kRows> w;
      find_rows(w.row, op.weight, n, end - n);
      float y[kFew][kRows] = {};
      for (int64_t k = 0; k < cols; k += M::kSegment) {
        const int64_t count = least(M::kSegment, cols - k);
        if (tokens <= kTokens) {
          const Near near{w.row, (cols - k) * 2, uintptr_t((kRows - 1) * cols * 2)};
          with_constant(tokens, [&](auto size) __attribute__((always_inline)) {
            tile_in_place<M, size()>(y[0], w, x + k, cols, count, near);
          });
          for (int r = 0; r < kRows; r++) w.row[r] += count;
          continue;
        }
        // Next: the next columns of these rows, or the first columns of the next rows.
        const int64_t distance = k + count < cols ? count : kRows * cols - k;
        Ahead ahead{uintptr_t(w.row[0]) + uintptr_t(distance * 2), uintptr_t(cols * 2), ahead_rows};
        for (int64_t t = 0; t < tokens; t += kTokens) {
          with_constant(tokens - t, [&](auto size) __attribute__((always_inline)) {
            tile_in_place<M, size()>(y[t], w, x + t * cols + k, cols, count, ahead);
          });
          ahead.next();
        }
        for (int r = 0; r < kRows; r++) w.row[r] += count;
      }
      for (int64_t t = 0; t < tokens; t++) write(op, t, n, y[t], least(kRows, end - n));
    }
}

// --- Many tokens

// A chunk of tokens in scratch: groups of kTokens (the last one may be smaller), each a panel over the whole of K;
// then, for every thread, a panel of weights and the sums [tokens of a chunk][kManyUnit].
template <class M>
struct Layout {
  int64_t token_bytes;  // a row of x in a panel
  int64_t x_bytes, w_bytes, sum_bytes;

  explicit Layout(int64_t tokens, int64_t cols)
      : token_bytes(ceil_div(cols, M::kStep) * kStepBytes<M>),
        x_bytes(tokens * token_bytes),
        w_bytes(kRows * kSegmentBytes),
        sum_bytes(tokens * kManyUnit * 4) {}
  int64_t bytes(int threads) const { return x_bytes + threads * (w_bytes + sum_bytes); }
};

template <class M, int tokens>
void tile(float* to, const std::byte* w, const std::byte* x, int64_t steps, const Ahead& ahead) {
  vf sum[tokens][kRows] = {};
  accumulate_steps<M>(sum, Panel<M, kRows>{w}, Panel<M, tokens>{x}, steps, ahead);
  add_segment(to, kManyUnit, sum);
}

template <class M, int tokens, class T>
void pack_tokens(std::byte* panel, const T* x, int64_t cols) {
  const T* row[tokens];
  for (int t = 0; t < tokens; t++) row[t] = x + t * cols;
  pack<M, tokens>(panel, row, cols);
}

template <class M, class T>
void multiply_chunk(const Linear& op, Worker& worker, int64_t first, int64_t tokens, const Layout<M>& layout) {
  const int64_t cols = op.weight.cols;
  std::byte* const x_panels = worker.scratch;
  std::byte* const mine = x_panels + layout.x_bytes + worker.index * (layout.w_bytes + layout.sum_bytes);
  float* const sums = reinterpret_cast<float*>(mine + layout.w_bytes);

  for (int64_t group, end; worker.take(group, end, ceil_div(tokens, kTokens));) {
    const int64_t t = group * kTokens;
    with_constant(tokens - t, [&](auto n) __attribute__((always_inline)) {
      pack_tokens<M, n()>(x_panels + t * layout.token_bytes, static_cast<const T*>(op.x.data) + (first + t) * cols,
                          cols);
    });
  }
  worker.barrier();

  const int64_t groups = ceil_div(tokens, kTokens);
  const int64_t unit = least(kManyUnit, most(1, op.weight.rows / (worker.count * kUnitsPerThread * kRows)) * kRows);
  for (int64_t begin, end; worker.take(begin, end, op.weight.rows, unit);) {
    std::memset(sums, 0, size_t(tokens * kManyUnit) * 4);
    const bf16* first_row = nullptr;
    for (int64_t k = 0; k < cols; k += M::kSegment) {
      const int64_t count = least(M::kSegment, cols - k), steps = ceil_div(count, M::kStep);
      for (int64_t n = begin; n < end; n += kRows) {
        const bf16* row[kRows];
        find_rows(row, op.weight, n, end - n);
        if (n == begin) first_row = row[0];
        for (int r = 0; r < kRows; r++) row[r] += k;
        pack<M, kRows>(mine, row, count);
        // Next: the same columns of the next rows, or the next columns of the first ones.
        Ahead ahead{uintptr_t(row[0]) + uintptr_t(kRows * cols * 2), uintptr_t(cols * 2), ceil_div(kRows, groups)};
        if (n + kRows >= end && k + count < cols) ahead.row = uintptr_t(first_row + k + count);
        for (int64_t t = 0, requested = 0; t < tokens; t += kTokens) {
          if (requested >= kRows) ahead.rows = 0;
          with_constant(tokens - t, [&](auto size) __attribute__((always_inline)) {
            const std::byte* x = x_panels + t * layout.token_bytes + k / M::kStep * kStepBytes<M> * size();
            tile<M, size()>(sums + t * kManyUnit + (n - begin), mine, x, steps, ahead);
          });
          ahead.next();
          requested += ahead.rows;
        }
      }
    }
    for (int64_t t = 0; t < tokens; t++) write(op, first + t, begin, sums + t * kManyUnit, end - begin);
  }
}

// Equal chunks: 256 tokens are 128 + 128, not 144 + 112.
constexpr int64_t chunk_of(int64_t tokens) { return ceil_div(tokens, ceil_div(tokens, kChunk)); }

template <class M, class T>
void multiply(const Linear& op, Worker& worker) {
  const int64_t tokens = live_rows(op.x);
  if (tokens <= 0) return;
  if (tokens <= kFew) return stream<M, T>(op, worker, tokens);
  const int64_t chunk = chunk_of(tokens);
  const Layout<M> layout(chunk, op.weight.cols);
  for (int64_t t = 0; t < tokens; t += chunk) {
    if (t) worker.barrier();  // the panels of x are about to be overwritten
    multiply_chunk<M, T>(op, worker, t, least(chunk, tokens - t), layout);
  }
}

}  // namespace

// Bytes of shared scratch: at most 8.3 MB for K = 14336, and 0.2 MB a thread.
size_t workspace(const Linear& op, int threads) {
  const int64_t tokens = least(op.x.dims[0], kChunk);  // however many will be alive
  return size_t(op.x.dtype == DType::f32 ? Layout<Fma>(tokens, op.weight.cols).bytes(threads)
                                         : Layout<ForBf16>(tokens, op.weight.cols).bytes(threads));
}

// Every thread of the team calls this with the same op.
void run(const Linear& op, Worker& worker) {
  if (op.x.dtype == DType::f32)
    multiply<Fma, float>(op, worker);
  else
    multiply<ForBf16, bf16>(op, worker);
}

}  // namespace cria::CRIA_ISA
