// isa.cc - every kernel exists in one namespace per instruction set; this file is the only one that knows them all.
#include "isa.h"

#define CRIA_DECLARE(Op)           \
  void run(const Op& op, Worker&); \
  size_t workspace(const Op& op, int threads);
#define CRIA_ISA_NAMESPACE(isa) \
  namespace isa {               \
  CRIA_OPS(CRIA_DECLARE)        \
  CeilingLoops ceiling_loops(); \
  }

namespace cria {

CRIA_ISA_NAMESPACE(scalar)
#if defined(__x86_64__)
CRIA_ISA_NAMESPACE(avx2)
CRIA_ISA_NAMESPACE(avx512)
CRIA_ISA_NAMESPACE(avx512bf16)
#endif

namespace {

#define CRIA_ISA_ENTRY(isa, supported)                                                                \
  Isa {                                                                                               \
    #isa, [] { return bool(supported); },                                                             \
        [](const Command& c, Worker& w) { std::visit([&](const auto& op) { isa::run(op, w); }, c); }, \
        [](const Command& c, int threads) {                                                           \
          return std::visit([&](const auto& op) { return isa::workspace(op, threads); }, c);          \
        },                                                                                            \
        isa::ceiling_loops                                                                            \
  }

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

// Best last.
const Isa kIsas[] = {
    CRIA_ISA_ENTRY(scalar, true),
#if defined(__x86_64__)
    CRIA_ISA_ENTRY(avx2, has_avx2()),
    CRIA_ISA_ENTRY(avx512, has_avx512()),
    CRIA_ISA_ENTRY(avx512bf16, has_avx512bf16()),
#endif
};

}  // namespace

const Isa& choose_isa(const std::string& name) {
  const Isa* best = &kIsas[0];
  std::string names;
  for (const Isa& isa : kIsas) {
    if (!isa.supported()) continue;
    names += (names.empty() ? "" : ", ") + std::string(isa.name);
    if (name == isa.name) return isa;
    best = &isa;
  }
  if (name.empty()) return *best;
  for (const Isa& isa : kIsas)
    if (name == isa.name)
      fail("ERR_DEVICE_UNSUPPORTED", "CRIA_CPU is ", name, ", which this processor does not support; it has ", names);
  fail("ERR_DEVICE_UNSUPPORTED", "CRIA_CPU is \"", name, "\", expected one of ", names, ", or nothing for the best");
}

}  // namespace cria
