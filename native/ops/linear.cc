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
#include "linear_tile.h"

namespace cria::CRIA_ISA {
namespace {

// --- Few tokens

// to[t][r] += the sum over `count` columns of kRows weight rows and `tokens` rows of x.
template <class M, int tokens, int rows, class T, class P>
CRIA_INLINE void tile_in_place(float* to, const Raw<M, bf16, rows>& w, const T* x, int64_t cols, int64_t count,
                               const P& ahead) {
  const int64_t steps = count / M::kStep, rest = count % M::kStep;
  Raw<M, T, tokens> xs;
  for (int t = 0; t < tokens; t++) xs.row[t] = x + t * cols;
  vf sum[tokens][rows] = {};
  accumulate_steps<M>(sum, w, xs, steps, ahead);
  if (rest) {
    alignas(64) std::byte w_rest[rows * kStepBytes<M>], x_rest[tokens * kStepBytes<M>];
    for (int r = 0; r < rows; r++) pack_rest<M, rows>(w_rest, 0, r, w.row[r] + steps * M::kStep, rest);
    for (int t = 0; t < tokens; t++) pack_rest<M, tokens>(x_rest, 0, t, xs.row[t] + steps * M::kStep, rest);
    accumulate_steps<M>(sum, Panel<M, rows>{w_rest}, Panel<M, tokens>{x_rest}, 1, Nothing{});
  }
  add_segment(to, rows, sum);
}

// Rows [begin, end) of unit u. A round gives every thread a share of half of what is left: long units, since at the end
// of one the rows asked for ahead are another thread's; and short ones in the end, so that all threads stop together.
struct Unit {
  int64_t begin, end;
};
CRIA_INLINE Unit unit_of(int64_t u, int64_t rows, int64_t threads) {
  int64_t begin = 0;
  for (int64_t round = u / threads; begin < rows; round--) {
    const int64_t size = most(kFewUnit, (rows - begin) / (2 * threads) / kRows * kRows);
    if (round == 0) {
      begin += u % threads * size;
      return {begin, least(begin + size, rows)};
    }
    begin += threads * size;
  }
  return {rows, rows};
}

// Up to kTokens tokens: nothing but memory counts. A unit is read as kStreams runs of whole rows side by side, each of
// which the processor's own prefetcher follows without being asked (measured: 0.93 of a plain read loop, which is one
// such run a thread; eight rows next to each other, with requests ahead, reach 0.75).
template <class M, class T>
void stream_runs(const Linear& op, Worker& worker, int64_t tokens) {
  const int64_t cols = op.weight.cols;
  for (int64_t u, next; worker.take(u, next, op.weight.rows);) {
    const auto [begin, end] = unit_of(u, op.weight.rows, worker.count);
    if (begin >= op.weight.rows) return;
    const int64_t run = ceil_div(end - begin, kStreams);
    for (int64_t n = begin; n < begin + run; n++) {
      Raw<M, bf16, kStreams> w;
      for (int r = 0; r < kStreams; r++) w.row[r] = find_row(op.weight, least(n + r * run, end - 1));
      const T* x = static_cast<const T*>(op.x.data);
      float y[kTokens][kStreams] = {};
      for (int64_t k = 0; k < cols; k += M::kSegment, x += M::kSegment) {
        const int64_t count = least(M::kSegment, cols - k);
        with_constant(tokens, [&](auto size) __attribute__((always_inline)) {
          tile_in_place<M, size()>(y[0], w, x, cols, count, Nothing{});
        });
        for (int r = 0; r < kStreams; r++) w.row[r] += count;
      }
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t r = 0; r < kStreams && n + r * run < end; r++) write(op, t, n + r * run, &y[t][r], 1);
    }
  }
}

// A few tokens: the weights of a tile stay in L1 while the tokens pass by; the next ones are asked for meanwhile.
template <class M, class T>
void stream(const Linear& op, Worker& worker, int64_t tokens) {
  const int64_t cols = op.weight.cols;
  const T* x = static_cast<const T*>(op.x.data);
  const int64_t ahead_rows = ceil_div(kRows, ceil_div(tokens, kTokens));

  for (int64_t u, next; worker.take(u, next, op.weight.rows);) {
    const auto [begin, end] = unit_of(u, op.weight.rows, worker.count);
    if (begin >= op.weight.rows) return;
    for (int64_t n = begin; n < end; n += kRows) {
      Raw<M, bf16, kRows> w;
      find_rows(w.row, op.weight, n, end - n);
      float y[kFew][kRows] = {};
      for (int64_t k = 0; k < cols; k += M::kSegment) {
        const int64_t count = least(M::kSegment, cols - k);
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
  if (tokens <= kTokens) return stream_runs<M, T>(op, worker, tokens);
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
  // NOLINTNEXTLINE(bugprone-branch-clone): ForBf16 is Fma where there are no dot products
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
