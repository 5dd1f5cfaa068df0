// library.h - matrix products by the vendor's library, where the machine happens to have one: what benchmarks compare
// with.
#pragma once
#include <memory>

#include "../machine/gpu.h"

namespace cria::CRIA_MACHINE {

// y = x w^T with float32 sums; x [rows, in], w [out, in], y [rows, out] in device memory.
struct Product {
  const bf16* x;
  const bf16* w;
  bf16* y;
  int64_t rows, out, in;
};

struct LibraryProduct {
  std::string name;  // "cuBLASLt 13.0.2"
  int ways = 0;      // in which it can compute this product
  virtual ~LibraryProduct() = default;
  virtual void launch(int way, const Stream& stream) = 0;
};

// nullptr where there is no library.
std::shared_ptr<LibraryProduct> library_product(const Product& product);

}  // namespace cria::CRIA_MACHINE
