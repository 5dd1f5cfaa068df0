// arena.h - lifetimes of recorded values -> offsets in one allocation.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

namespace cria {

// A value is written by command `first` and read last by command `last`, both included.
struct Lifetime {
  size_t bytes = 0;
  int first = 0;
  int last = 0;
  bool outside = false;  // returned from the recording: it has memory of its own
};

struct Arena {
  std::vector<size_t> offsets;  // per value; 0 for those outside
  size_t bytes = 0;
};

// Greedy by size: the largest value first, each at the lowest offset where nothing alive at the same time lies.
inline Arena plan(const std::vector<Lifetime>& values, size_t alignment = 256) {
  Arena arena{std::vector<size_t>(values.size(), 0), 0};
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a].bytes > values[b].bytes; });

  const auto rounded = [&](size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; };
  std::vector<size_t> placed;  // by offset
  for (const size_t i : order) {
    if (values[i].outside) continue;
    size_t offset = 0;
    for (const size_t j : placed) {
      const bool together = values[i].first <= values[j].last && values[j].first <= values[i].last;
      if (!together) continue;
      if (arena.offsets[j] >= offset + rounded(values[i].bytes)) break;
      offset = std::max(offset, arena.offsets[j] + rounded(values[j].bytes));
    }
    arena.offsets[i] = offset;
    arena.bytes = std::max(arena.bytes, offset + rounded(values[i].bytes));
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](size_t a, size_t b) { return arena.offsets[a] < arena.offsets[b]; }),
                  i);
  }
  return arena;
}

}  // namespace cria
