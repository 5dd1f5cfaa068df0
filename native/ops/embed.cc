// embed.cc - one row of the table a token, widened.
#include "embed.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {

size_t workspace(const Embed&, int) { return 0; }

void run(const Embed& op, Worker& w) {
  const int64_t dim = op.table.cols, rows = live_rows(op.x);
  const auto* tokens = static_cast<const int32_t*>(op.tokens.data);
  const auto* source = static_cast<const int32_t*>(op.source.data);
  const auto* previous = static_cast<const int32_t*>(op.previous.data);
  for (int64_t begin, end; w.take(begin, end, rows);)
    for (int64_t t = begin; t < end; t++) {
      float* x = static_cast<float*>(op.x.data) + t * dim;
      int64_t id = tokens[t];
      if (source[t] >= 0) id = op.previous.rank && source[t] < op.previous.dims[0] ? previous[source[t]] : -1;
      if (id < 0 || id >= op.table.rows) {
        for (int64_t d = 0; d < dim; d++) x[d] = __builtin_nanf("");
        continue;
      }
      const RowBlock* block = op.table.blocks;
      while (id >= block->rows) id -= block++->rows;
      const bf16* row = block->data + id * dim;
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) store(x + d, load(row + d));
      if (d < dim) store_part(x + d, load_part(row + d, dim - d), dim - d);
    }
}

}  // namespace cria::CRIA_ISA
