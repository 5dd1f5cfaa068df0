// select_rows.cc - a gather of rows.
#include "select_rows.h"

#include "vec.h"
#include "worker.h"

namespace cria::CRIA_ISA {

size_t workspace(const SelectRows&, int) { return 0; }

void run(const SelectRows& op, Worker& w) {
  const int64_t dim = op.x.dims[1];
  const auto* outputs = static_cast<const int32_t*>(op.outputs.data);
  for (int64_t begin, end; w.take(begin, end, live_rows(op.y));)
    for (int64_t i = begin; i < end; i++) {
      float* y = static_cast<float*>(op.y.data) + i * dim;
      if (outputs[i] < op.x.dims[0])
        std::memcpy(y, static_cast<const float*>(op.x.data) + outputs[i] * dim, size_t(dim) * 4);
      else
        for (int64_t d = 0; d < dim; d++) y[d] = __builtin_nanf("");
    }
}

}  // namespace cria::CRIA_ISA
