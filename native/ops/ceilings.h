// ceilings.h - what this machine can do: the denominators of every benchmark.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace cria {

struct Ceilings {
  double read = 0;   // bytes a second, all threads reading memory once
  double copy = 0;   // bytes read plus bytes written a second
  double flops = 0;  // of products and sums a second, FMA, bf16 dot products, or bf16 mma.sync and wgmma
};

// The vendor's library in a matrix product of bf16, for comparison.
struct LibraryRate {
  std::string library;  // its name and version; empty: there is none
  double flops = 0;     // operations a second
};

// The loops that are timed, by one thread; in every instruction set.
struct CeilingLoops {
  float (*read)(const float* data, int64_t count);
  void (*copy)(float* to, const float* from, int64_t count);
  float (*multiply)(int64_t rounds);
  double flops_per_round;
};

}  // namespace cria
