// program.cc - from a recording to commands with addresses.
#include "device.h"

namespace cria {
namespace {
constexpr size_t kAlign = 256;  // at least a cache line on every machine; what cudaMalloc gives
size_t rounded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
}  // namespace

void place(Program& program, const Recording& recording, const std::vector<int>& results, size_t workspace,
           std::weak_ptr<Buffer>& shared, const std::function<std::shared_ptr<Buffer>(size_t)>& allocate) {
  std::vector<Lifetime> values = recording.values();
  for (const int r : results) values[size_t(r)].outside = true;
  const Arena arena = plan(values, kAlign);

  size_t copy_bytes = 0;  // of one copy of the results
  for (const int r : results) copy_bytes += rounded(values[size_t(r)].bytes);
  program.arena = shared.lock();
  if (!program.arena || program.arena->bytes < arena.bytes + workspace) {
    program.arena = allocate(arena.bytes + workspace);
    shared = program.arena;
  }
  program.memory = allocate(2 * copy_bytes);
  program.results = results;

  std::byte* const base = static_cast<std::byte*>(program.arena->data);
  program.values_bytes = arena.bytes;
  program.workspace = base + arena.bytes;
  program.workspace_bytes = workspace;
  for (size_t copy = 0; copy < 2; copy++) {
    std::vector<void*> address(values.size());
    for (size_t i = 0; i < values.size(); i++) address[i] = base + arena.offsets[i];
    std::byte* at = static_cast<std::byte*>(program.memory->data) + copy * copy_bytes;
    for (const int r : results) {
      address[size_t(r)] = at;
      program.addresses[copy].push_back(at);
      at += rounded(values[size_t(r)].bytes);
    }
    program.commands[copy] = recording.commands();
    for (Command& command : program.commands[copy])
      std::visit(
          [&](auto& op) {
            each_tensor(op, [&](Tensor& t, bool) {
              if (t.value >= 0) t.data = address[size_t(t.value)];
            });
          },
          command);
  }
}

}  // namespace cria
