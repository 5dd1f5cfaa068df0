// attention.cc - for one token and up to four query heads of a key/value head: scores, softmax, weighted sum of values.
//
// The bits of a row depend on its query and on the keys and values it sees, in their order: a score is one fixed sum
// over the head, the softmax runs over the visible length alone, and values are added key by key. Pages, batch and
// chunks of the prompt change where the operands lie and nothing else.
#include "attention.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {
namespace {

constexpr int kQueries = 4;  // query heads that share each load of a key or value
constexpr int64_t kBlock =
    8;                       // tokens of a sequence that a thread takes at once: keys are read from L2 after the first
constexpr int kColumns = 4;  // vectors of a value row whose sums stay in registers: 4 x 4 of 16 or 32

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One thread's workspace, in floats.
struct Scratch {
  int64_t head, length;
  explicit Scratch(const Attention& op)
      : head(round_up(op.k.dims[3], kLanes)), length(round_up(op.pageTable.dims[1] * op.k.dims[2], kLanes)) {}
  int64_t size() const { return kQueries * (head + length); }
};

// The rows of one sequence's keys or values for one head.
template <class T>
struct Cache {
  const T* data;  // [pages, kvHeads, pageSize, headDim], at this head of page 0
  const int32_t* pages;
  int64_t page_size, page_stride, dim;
  CRIA_INLINE const T* page(int64_t i) const { return data + pages[i] * page_stride; }
};

// scores[q][j] = scale * query[q] . key[j] for keys [0, length). Two keys at a time, for more independent sums.
template <class T>
void score(float* scores, int64_t stride, const float* query, int64_t head, const Cache<T>& keys, int64_t length,
           float scale) {
  const int64_t full = keys.dim / kLanes, rest = keys.dim % kLanes;
  for (int64_t begin = 0, p = 0; begin < length; begin += keys.page_size, p++) {
    const T* page = keys.page(p);
    const int64_t count = length - begin < keys.page_size ? length - begin : keys.page_size;
    for (int64_t i = 0; i < count; i += 2) {
      const T* const key[2] = {page + i * keys.dim, page + (i + 1 < count ? i + 1 : i) * keys.dim};
      vf sum[2][kQueries] = {};
      for (int64_t c = 0; c < full; c++) {
        const vf k[2] = {load(key[0] + c * kLanes), load(key[1] + c * kLanes)};
#pragma GCC unroll 4
        for (int q = 0; q < kQueries; q++) {
          const vf x = load(query + q * head + c * kLanes);
          sum[0][q] = fma(x, k[0], sum[0][q]);
          sum[1][q] = fma(x, k[1], sum[1][q]);
        }
      }
      if (rest) {
        const vf k[2] = {load_part(key[0] + full * kLanes, rest), load_part(key[1] + full * kLanes, rest)};
        for (int q = 0; q < kQueries; q++)
          for (int j = 0; j < 2; j++) sum[j][q] = fma(load(query + q * head + full * kLanes), k[j], sum[j][q]);
      }
      for (int j = 0; j < 2 && i + j < count; j++) {
        const f4 s = hsum4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]) * scale;
        for (int q = 0; q < kQueries; q++) scores[q * stride + begin + i + j] = s[q];
      }
    }
  }
}

// scores[0, length) -> e^(score - max); returns their sum. Sixteen (eight, four) partial sums by position.
float softmax(float* scores, int64_t length) {
  const float lowest = -__builtin_inff();
  const int64_t full = length / kLanes * kLanes, rest = length - full;
  for (int64_t j = length; j < full + (rest ? kLanes : 0); j++) scores[j] = lowest;  // e^-inf = 0 adds nothing
  vf highest = splat(lowest);
  for (int64_t j = 0; j < length; j += kLanes) highest = vmax(load(scores + j), highest);
  const vf max = splat(hmax(highest));
  vf sum = {};
  for (int64_t j = 0; j < length; j += kLanes) {
    const vf e = vexp(load(scores + j) - max);
    store(scores + j, e);
    sum += e;
  }
  return hsum(sum);
}

// y[q][columns] = sum over j of weight[q][j] value[j][columns], in the order of j, divided by total[q].
template <class T, int columns>
void weigh(T* const (&y)[kQueries], int queries, const float* weights, int64_t stride, const float (&total)[kQueries],
           const Cache<T>& values, int64_t length, int64_t column) {
  vf sum[kQueries][columns] = {};
  for (int64_t begin = 0, p = 0; begin < length; begin += values.page_size, p++) {
    const T* page = values.page(p) + column;
    const int64_t count = length - begin < values.page_size ? length - begin : values.page_size;
    for (int64_t i = 0; i < count; i++) {
      vf v[columns];
#pragma GCC unroll 4
      for (int c = 0; c < columns; c++) v[c] = load(page + i * values.dim + c * kLanes);
#pragma GCC unroll 4
      for (int q = 0; q < kQueries; q++) {
        const vf w = splat(weights[q * stride + begin + i]);
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sum[q][c] = fma(w, v[c], sum[q][c]);
      }
    }
  }
  for (int q = 0; q < queries; q++)
    for (int c = 0; c < columns; c++) store(y[q] + column + c * kLanes, sum[q][c] / total[q]);
}

// The columns after the last whole vector, one by one.
template <class T>
void weigh_rest(T* const (&y)[kQueries], int queries, const float* weights, int64_t stride,
                const float (&total)[kQueries], const Cache<T>& values, int64_t length, int64_t column) {
  for (int q = 0; q < queries; q++)
    for (int64_t d = column; d < values.dim; d++) {
      float sum = 0;
      for (int64_t j = 0; j < length; j++) {
        const float v = float(values.page(j / values.page_size)[j % values.page_size * values.dim + d]);
        sum = __builtin_fmaf(weights[q * stride + j], v, sum);
      }
      store(y[q] + d, sum / total[q]);
    }
}

template <class T>
void token(const Attention& op, int64_t row, int64_t kv_head, const Cache<T>& keys, const Cache<T>& values,
           int64_t length, float* scratch) {
  const Scratch layout(op);
  const int64_t heads = op.q.dims[1], dim = keys.dim, group = heads / op.k.dims[1];
  float* query = scratch;                             // [kQueries, head]
  float* weights = scratch + kQueries * layout.head;  // [kQueries, length]
  const float scale = 1.0f / __builtin_sqrtf(float(dim));
  for (int64_t g = 0; g < group; g += kQueries) {
    const int queries = int(group - g < kQueries ? group - g : kQueries);
    T* y[kQueries] = {};
    for (int q = 0; q < kQueries; q++) {  // places beyond `queries` repeat the last head, and nobody looks at them
      const int64_t at = row * heads * dim + (kv_head * group + g + (q < queries ? q : queries - 1)) * dim;
      for (int64_t d = 0; d < layout.head; d++)
        query[q * layout.head + d] = d < dim ? float(static_cast<const T*>(op.q.data)[at + d]) : 0.0f;
      y[q] = static_cast<T*>(op.y.data) + at;
    }
    score(weights, layout.length, query, layout.head, keys, length, scale);
    float total[kQueries];
    for (int q = 0; q < kQueries; q++) total[q] = softmax(weights + q * layout.length, length);
    int64_t column = 0;
    for (; column + kColumns * kLanes <= dim; column += kColumns * kLanes)
      weigh<T, kColumns>(y, queries, weights, layout.length, total, values, length, column);
    for (; column + kLanes <= dim; column += kLanes)
      weigh<T, 1>(y, queries, weights, layout.length, total, values, length, column);
    if (column < dim) weigh_rest(y, queries, weights, layout.length, total, values, length, column);
  }
}

template <class T>
void sequences(const Attention& op, Worker& w) {
  const int64_t seqs = op.kvLength.dims[0], kv_heads = op.k.dims[1], dim = op.k.dims[3],
                max_pages = op.pageTable.dims[1];
  const int64_t page_size = op.k.dims[2], stride = kv_heads * page_size * dim, width = op.y.dims[1];
  const auto* start = static_cast<const int32_t*>(op.queryStart.data);
  const auto* lengths = static_cast<const int32_t*>(op.kvLength.data);
  float* scratch = reinterpret_cast<float*>(w.scratch) + w.index * Scratch(op).size();
  const int64_t live = live_rows(op.q);
  const auto rows_of = [&](int64_t s) __attribute__((always_inline)) {
    const int64_t end = start[s + 1] < live ? start[s + 1] : live;
    return start[s] >= 0 && end > start[s] ? end - start[s] : int64_t{0};
  };
  int64_t units = 0;  // (block of tokens, key/value head) of every sequence
  for (int64_t s = 0; s < seqs; s++) units += (rows_of(s) + kBlock - 1) / kBlock * kv_heads;

  int64_t s = 0, before = 0;  // units before sequence s; take() only counts up
  for (int64_t unit, next; w.take(unit, next, units);) {
    int64_t blocks;
    while (blocks = (rows_of(s) + kBlock - 1) / kBlock, unit >= before + blocks * kv_heads)
      before += blocks * kv_heads, s++;
    // Late blocks see the most keys, so they are dealt first.
    const int64_t block = blocks - 1 - (unit - before) / kv_heads, kv_head = (unit - before) % kv_heads,
                  rows = rows_of(s);
    const int32_t* pages = static_cast<const int32_t*>(op.pageTable.data) + s * max_pages;
    const auto cache = [&](const Tensor& t) __attribute__((always_inline)) {
      return Cache<T>{static_cast<const T*>(t.data) + kv_head * page_size * dim, pages, page_size, stride, dim};
    };
    for (int64_t i = block * kBlock; i < rows && i < (block + 1) * kBlock; i++) {
      const int64_t length = lengths[s] - rows + i + 1;  // keys that this row sees
      bool valid = length > 0 && length <= max_pages * page_size;
      for (int64_t p = 0; valid && p * page_size < length; p++) valid = pages[p] >= 0 && pages[p] < op.k.dims[0];
      if (valid) {
        token<T>(op, start[s] + i, kv_head, cache(op.k), cache(op.v), length, scratch);
      } else {  // a broken table must not become a read of other memory: this row fails, alone
        T* y = static_cast<T*>(op.y.data) + (start[s] + i) * width + kv_head * (width / kv_heads);
        for (int64_t d = 0; d < width / kv_heads; d++) store(y + d, __builtin_nanf(""));
      }
    }
  }
}

}  // namespace

size_t workspace(const Attention& op, int threads) {
  return size_t(threads) * size_t(Scratch(op).size()) * sizeof(float);
}

void run(const Attention& op, Worker& w) {
  if (op.q.dtype == DType::bf16)
    sequences<bf16>(op, w);
  else
    sequences<float>(op, w);
}

}  // namespace cria::CRIA_ISA
