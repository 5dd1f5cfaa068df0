// simt.h - the dialect of the .cu files: one kernel source, two machines. nvcc sees CUDA, a host compiler sees fibers.
//
//   launch(kernel, {grid, block, shared}, stream, arguments...)   never <<< >>>
//   CRIA_SHARED(T, name)          the dynamic shared memory, aligned to 1024 bytes
//   sync_block() sync_warp(mask)  every barrier, wait, fence and guard is a call, so that a test can take one away
//   guard(condition)              a bound or a mask: true on a wounded machine
//
// Everything that is an instruction of its own is in ptx/.
#pragma once
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "../core/dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define CRIA_MACHINE cuda
#define CRIA_ON_GPU 1
#define CRIA_DEVICE __device__ __forceinline__
#define CRIA_UNROLL _Pragma("unroll")
#define CRIA_SHARED(T, name)                               \
  extern __shared__ __align__(1024) uint8_t cria_shared[]; \
  T* const name = reinterpret_cast<T*>(cria_shared)
#define CRIA_AT        // where this call stands; known to the host machine only
#define CRIA_AT_FIRST  // the same as the only parameter
#define CRIA_PASS
#else
#include "simt_host.h"
#define CRIA_MACHINE simt
#define CRIA_DEVICE inline __attribute__((always_inline))
#define CRIA_UNROLL
#define CRIA_SHARED(T, name) T* const name = reinterpret_cast<T*>(::cria::simt::block().shared)
#define CRIA_AT , ::cria::simt::Site site = ::cria::simt::Site::here()
#define CRIA_AT_FIRST ::cria::simt::Site site = ::cria::simt::Site::here()
#define CRIA_PASS , site
#endif

namespace cria::CRIA_MACHINE {

constexpr uint32_t kAllLanes = 0xffffffffu;

// How a kernel is started.
struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared = 0;       // bytes of dynamic shared memory
  unsigned cluster = 1;    // blocks, along x
  bool dependent = false;  // programmatic dependent launch: it calls grid_wait() before it reads what others wrote
};

// A launch that was recorded.
struct Launched {
  std::string kernel;  // its mangled name on a GPU; its place in the library, as "0x1234", on the host
  dim3 grid, block;
  size_t shared;
};

CRIA_DEVICE void sync_block(CRIA_AT_FIRST) {
#ifdef CRIA_ON_GPU
  __syncthreads();
#else
  barrier(0, 0, site);
#endif
}

// Some warps of a block: id 1 to 15, threads a multiple of 32.
CRIA_DEVICE void sync_warps(int id, int threads CRIA_AT) {
#ifdef CRIA_ON_GPU
  __barrier_sync_count(unsigned(id), unsigned(threads));
#else
  barrier(id, unsigned(threads), site);
#endif
}

// Orders memory among the lanes, too.
CRIA_DEVICE void sync_warp(uint32_t mask = kAllLanes CRIA_AT) {
#ifdef CRIA_ON_GPU
  __syncwarp(mask);
#else
  if (machine->removed(site)) return;
  int nothing = 0;
  collective(mask, nothing, "sync_warp", site, [](int* const*) {});
#endif
}

CRIA_DEVICE bool guard(bool condition CRIA_AT) {
#ifdef CRIA_ON_GPU
  return condition;
#else
  return condition || machine->removed(site);
#endif
}

// --- Arithmetic of one instruction

CRIA_DEVICE float fused(float a, float b, float c) {  // a b + c, rounded once
#ifdef CRIA_ON_GPU
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

CRIA_DEVICE float product(float a, float b) {  // rounded, never fused with what follows
#ifdef CRIA_ON_GPU
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// --- Starting kernels

#ifdef CRIA_ON_GPU
struct Stream {
  cudaStream_t handle = nullptr;
  std::vector<Launched>* launched = nullptr;  // where launches are noted
};
void check(cudaError_t error, const char* what);

template <class... P, class... A>
void launch(void (*kernel)(P...), const char* name, const Shape& shape, const Stream& stream, A... arguments) {
  if (shape.shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared)), name);
  // All that shared memory can be: with less, a programmatic dependent finds no room beside its predecessor.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        name);
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream.handle;
  config.attrs = attributes;
  if (shape.dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = shape.cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs++].val.clusterDim.z = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, P(arguments)...), name);
  const char* symbol = nullptr;
  if (stream.launched && cudaFuncGetName(&symbol, reinterpret_cast<const void*>(kernel)) == cudaSuccess)
    stream.launched->push_back({symbol, shape.grid, shape.block, shape.shared});
}
#else
struct Stream {
  Machine* machine = nullptr;
};
template <class... P, class... A>
void launch(void (*kernel)(P...), const char* name, const Shape& shape, const Stream& stream, A... arguments) {
  Launch l;
  l.body = [=] { kernel(P(arguments)...); };
  l.name = name;
  l.kernel = reinterpret_cast<const void*>(kernel);
  l.grid = shape.grid;
  l.block = shape.block;
  l.shared = shape.shared;
  l.cluster = shape.cluster;
  l.dependent = shape.dependent;
  stream.machine->submit(std::move(l));
}
#endif

}  // namespace cria::CRIA_MACHINE
