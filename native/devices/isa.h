// isa.h - the CPU kernels, compiled once per instruction set, and the choice between them at run time.
#pragma once
#include <string>

#include "../ops/ceilings.h"
#include "../ops/ops.h"
#include "../ops/worker.h"

namespace cria {

struct Isa {
  const char* name;
  bool (*supported)();  // by this processor and its operating system
  void (*run)(const Command&, Worker&);
  size_t (*workspace)(const Command&, int threads);
  CeilingLoops (*ceilings)();
};

// The best supported one, or the one named (scalar, avx2, avx512, avx512bf16). ERR_DEVICE_UNSUPPORTED names the
// choices.
const Isa& choose_isa(const std::string& name);

}  // namespace cria
