// library.cu - cuBLASLt, opened at run time (CRIA_CUBLASLT says where): nothing links it, nothing needs it. Its
// interface as far as it is used here.
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "library.h"

namespace cria::cuda {
namespace {

// cublasLt.h of CUDA 12 and 13. Every function returns a cublasStatus_t, 0 for success.
using Handle = void*;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};
constexpr int kCompute32F = 68, kDescTransA = 3, kMaxWorkspace = 1;
constexpr size_t kWorkspace = 64 << 20;

struct Library {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*desc_create)(Handle*, int compute, int scale);
  int (*desc_destroy)(Handle);
  int (*desc_set)(Handle, int attribute, const void*, size_t);
  int (*layout_create)(Handle*, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(Handle);
  int (*preference_create)(Handle*);
  int (*preference_destroy)(Handle);
  int (*preference_set)(Handle, int attribute, const void*, size_t);
  int (*heuristic)(Handle, Handle desc, Handle a, Handle b, Handle c, Handle d, Handle preference, int, Heuristic*,
                   int*);
  int (*matmul)(Handle, Handle desc, const void* alpha, const void* a, Handle, const void* b, Handle, const void* beta,
                const void* c, Handle, void* d, Handle, const Algorithm*, void* workspace, size_t, cudaStream_t);
  size_t (*version)();
};

// nullptr: the machine has none. It stays open.
const Library* library() {
  static const std::unique_ptr<const Library> found = []() -> std::unique_ptr<const Library> {
    const char* const wanted = std::getenv("CRIA_CUBLASLT");
    void* handle = wanted && *wanted ? dlopen(wanted, RTLD_NOW | RTLD_LOCAL) : nullptr;
    for (const char* name : {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "libcublasLt.so.12",
                             "/usr/local/cuda/lib64/libcublasLt.so.12"})
      if (!handle) handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return nullptr;
    auto l = std::make_unique<Library>();
    bool all = true;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      all = all && function;
    };
    find(l->create, "cublasLtCreate");
    find(l->destroy, "cublasLtDestroy");
    find(l->desc_create, "cublasLtMatmulDescCreate");
    find(l->desc_destroy, "cublasLtMatmulDescDestroy");
    find(l->desc_set, "cublasLtMatmulDescSetAttribute");
    find(l->layout_create, "cublasLtMatrixLayoutCreate");
    find(l->layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(l->preference_create, "cublasLtMatmulPreferenceCreate");
    find(l->preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(l->preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(l->heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(l->matmul, "cublasLtMatmul");
    find(l->version, "cublasLtGetVersion");
    return all ? std::move(l) : nullptr;
  }();
  return found.get();
}

// 130002 -> "13.0.2": major * 10000 + minor * 100 + patch.
std::string version_text(size_t v) { return concat(v / 10000, ".", v / 100 % 100, ".", v % 100); }

class Cublas final : public LibraryProduct {
 public:
  Cublas(const Library& l, const Product& p) : l_(l), p_(p) {
    name = concat("cuBLASLt ", version_text(l.version()));
    check(cudaMalloc(&workspace_, kWorkspace), "memory of the GPU");
    succeed(l_.create(&handle_));
    // Column-major, as the library has it: y^T [out, rows] = w [out, in] x^T, and w is given as its transpose.
    const int32_t transposed = 1;
    succeed(l_.desc_create(&desc_, kCompute32F, CUDA_R_32F));
    succeed(l_.desc_set(desc_, kDescTransA, &transposed, sizeof(transposed)));
    succeed(l_.layout_create(&w_, CUDA_R_16BF, uint64_t(p.in), uint64_t(p.out), p.in));
    succeed(l_.layout_create(&x_, CUDA_R_16BF, uint64_t(p.in), uint64_t(p.rows), p.in));
    succeed(l_.layout_create(&y_, CUDA_R_16BF, uint64_t(p.out), uint64_t(p.rows), p.out));
    succeed(l_.preference_create(&preference_));
    succeed(l_.preference_set(preference_, kMaxWorkspace, &kWorkspace, sizeof(kWorkspace)));
    std::array<Heuristic, 8> found{};
    int count = 0;
    succeed(l_.heuristic(handle_, desc_, w_, x_, y_, y_, preference_, int(found.size()), found.data(), &count));
    // Each once outside of a graph: its code is loaded then, and it is known to run.
    for (int i = 0; i < count; i++)
      if (found[size_t(i)].status == 0 && start(found[size_t(i)], nullptr) == 0) ways_.push_back(found[size_t(i)]);
    check(cudaDeviceSynchronize(), "a product of cuBLASLt");
    ways = int(ways_.size());
  }
  ~Cublas() override {
    for (const Handle layout : {w_, x_, y_})
      if (layout) l_.layout_destroy(layout);
    if (preference_) l_.preference_destroy(preference_);
    if (desc_) l_.desc_destroy(desc_);
    if (handle_) l_.destroy(handle_);
    cudaFree(workspace_);
  }
  void launch(int way, const Stream& stream) override { succeed(start(ways_[size_t(way)], stream.handle)); }

 private:
  int start(const Heuristic& way, cudaStream_t stream) const {
    const float one = 1, zero = 0;
    return l_.matmul(handle_, desc_, &one, p_.w, w_, p_.x, x_, &zero, p_.y, y_, p_.y, y_, &way.algorithm, workspace_,
                     kWorkspace, stream);
  }
  void succeed(int status) const {
    if (status != 0) cria::fail("ERR_DEVICE_FAILED", name, ": a call failed with status ", status);
  }

  const Library& l_;
  const Product p_;
  Handle handle_ = nullptr, desc_ = nullptr, w_ = nullptr, x_ = nullptr, y_ = nullptr, preference_ = nullptr;
  void* workspace_ = nullptr;
  std::vector<Heuristic> ways_;
};

}  // namespace

std::shared_ptr<LibraryProduct> library_product(const Product& product) {
  const Library* const l = library();
  return l ? std::make_shared<Cublas>(*l, product) : nullptr;
}

}  // namespace cria::cuda
