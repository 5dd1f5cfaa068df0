// safetensors_check - reads safetensors files and says what the parser says. For tests, and for anybody with a doubtful
// file.
//
//   safetensors_check FILE...                      one line of JSON per file; without arguments paths come from stdin
//   safetensors_check --mutate SEED COUNT FILE     damages FILE in memory, COUNT times, and counts what was said
//
// Built with AddressSanitizer by test/lib/safetensors.test.ts. A file is parsed twice, where it is mapped and from a
// heap block of its exact size, behind which a sanitizer sees every byte; all bytes of accepted tensors are read.
// "peak" is the largest sum of the allocations that were alive at one time in the first parse. Exit status: 0, or 1
// when the parser broke a promise, whatever it says of the files.
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <new>
#include <set>

#include "../core/error.h"
#include "../core/json.h"
#include "../core/safetensors.h"
#include "safetensors_mutator.h"

namespace {

size_t live_bytes = 0;
size_t peak_bytes = 0;

void* counted_alloc(size_t size) {
  void* p = std::malloc(size);
  if (p == nullptr) throw std::bad_alloc();
  live_bytes += malloc_usable_size(p);
  peak_bytes = std::max(peak_bytes, live_bytes);
  return p;
}

void counted_free(void* p) {
  if (p != nullptr) live_bytes -= malloc_usable_size(p);
  std::free(p);
}

}  // namespace

void* operator new(size_t size) { return counted_alloc(size); }
void* operator new[](size_t size) { return counted_alloc(size); }
void operator delete(void* p) noexcept { counted_free(p); }
void operator delete[](void* p) noexcept { counted_free(p); }
void operator delete(void* p, size_t) noexcept { counted_free(p); }
void operator delete[](void* p, size_t) noexcept { counted_free(p); }

namespace {

using cria::concat;
using cria::fail;
using cria::json_quoted;
using cria::TensorInfo;

constexpr size_t memory_beyond_file = size_t{4} << 20;  // as safetensors.h promises
constexpr size_t whole = SIZE_MAX;

// What the parser said of one file: code is empty when it accepted it.
struct Verdict {
  std::string code;
  std::string message;
  size_t tensors = 0;
  size_t misaligned = 0;
  size_t peak = 0;
};

// Runs parse(use), where use(tensors, file, size) gets what was accepted.
template <class Parse>
Verdict judge(const Parse& parse) {
  Verdict verdict;
  const size_t before = live_bytes;
  peak_bytes = live_bytes;
  try {
    parse([&](const std::vector<TensorInfo>& tensors, const std::byte* file, uint64_t size) {
      verdict.peak = peak_bytes - before;
      verdict.tensors = tensors.size();
      std::set<std::string_view> names;
      const std::byte* end = nullptr;  // of the tensors so far
      for (const TensorInfo& tensor : tensors) {
        if (end == nullptr) end = tensor.data;
        if (tensor.data != end || tensor.data < file) fail("BROKEN", "tensors are not contiguous");
        if (!names.insert(tensor.name).second) fail("BROKEN", "two tensors have the same name");
        for (int64_t dim : tensor.shape) {
          if (dim < 0) fail("BROKEN", "a dimension is negative");
        }
        const auto* bytes = reinterpret_cast<const volatile unsigned char*>(tensor.data);
        for (uint64_t i = 0; i < tensor.bytes; i++) static_cast<void>(bytes[i]);
        end += tensor.bytes;
        verdict.misaligned += tensor.aligned ? 0 : 1;
      }
      if (end != nullptr && end != file + size) fail("BROKEN", "the tensors do not end with the file");
    });
  } catch (const cria::Error& error) {
    if (error.code == "BROKEN") throw;
    verdict.peak = peak_bytes - before;
    verdict.code = error.code;
    verdict.message = error.what();
  }
  return verdict;
}

Verdict judge_bytes(const std::string& bytes, const std::string& path) {
  // malloc, not new: this copy is the harness's, and no byte behind it may be read.
  const std::unique_ptr<std::byte, decltype(&std::free)> copy(
      static_cast<std::byte*>(std::malloc(std::max<size_t>(bytes.size(), 1))), &std::free);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  return judge(
      [&](const auto& use) { use(cria::parse_safetensors(copy.get(), bytes.size(), path), copy.get(), bytes.size()); });
}

Verdict judge_file(const std::string& path) {
  return judge([&](const auto& use) {
    const auto file = cria::Safetensors::open(path);
    const auto& tensors = file->tensors();
    use(tensors, tensors.empty() ? nullptr : tensors.back().data + tensors.back().bytes - file->size(), file->size());
    for (const TensorInfo& tensor : tensors) {
      if (file->find(tensor.name) != &tensor) fail("BROKEN", "find does not find ", tensor.name);
    }
    uint64_t last = 0;
    uint64_t calls = 0;
    const bool finished = file->prefetch([&](uint64_t done, uint64_t total) {
      if (done < last || total != file->size()) fail("BROKEN", "prefetch reports wrong progress");
      last = done;
      calls++;
      return true;
    });
    if (!finished || last != file->size() || calls < 2) fail("BROKEN", "prefetch did not finish");
    if (file->prefetch([](uint64_t done, uint64_t) { return done == 0; })) fail("BROKEN", "prefetch did not stop");
  });
}

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void check_message(const Verdict& verdict, const std::string& path) {
  if (verdict.code.empty()) return;
  if (verdict.message.find(path) == std::string::npos) fail("BROKEN", "no path in the message: ", verdict.message);
  if (verdict.message.size() > path.size() + 1000) fail("BROKEN", "a message is too long: ", verdict.message);
}

void check_file(const std::string& path) {
  const Verdict verdict = judge_file(path);
  if (verdict.code.rfind("ERR_MODEL_FILE", 0) != 0) {
    const Verdict again = judge_bytes(read_bytes(path), path);
    if (again.code != verdict.code || again.message != verdict.message) {
      fail("BROKEN", "mapped: ", verdict.message, " From memory: ", again.message);
    }
    check_message(verdict, path);
  }
  std::cout << "{\"file\":" << json_quoted(path, whole);
  if (verdict.code.empty()) {
    std::cout << ",\"ok\":true,\"tensors\":" << verdict.tensors << ",\"misaligned\":" << verdict.misaligned;
  } else {
    std::cout << ",\"ok\":false,\"code\":" << json_quoted(verdict.code, whole)
              << ",\"message\":" << json_quoted(verdict.message, whole);
  }
  std::cout << ",\"peak\":" << verdict.peak << "}" << std::endl;
}

void check_mutants(uint64_t seed, uint64_t count, const std::string& path) {
  using Clock = std::chrono::steady_clock;
  cria::SafetensorsMutator mutator(read_bytes(path), seed);
  std::map<std::string, uint64_t> codes;
  uint64_t accepted = 0;
  size_t extra = 0;  // memory beyond the size of the file, at most
  double slowest = 0;
  for (uint64_t i = 0; i < count; i++) {
    const std::string mutant = mutator.next();
    const auto begin = Clock::now();
    const Verdict verdict = judge_bytes(mutant, path);
    slowest = std::max(slowest, std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    check_message(verdict, path);
    extra = std::max(extra, verdict.peak - std::min(verdict.peak, mutant.size()));
    if (extra > memory_beyond_file) fail("BROKEN", "mutant ", i, " of seed ", seed, " took too much memory");
    if (verdict.code.empty()) {
      accepted++;
    } else {
      codes[verdict.code]++;
    }
  }
  std::cout << "{\"mutants\":" << count << ",\"seed\":" << seed << ",\"accepted\":" << accepted << ",\"codes\":{";
  const char* comma = "";
  for (const auto& [code, times] : codes) {
    std::cout << comma << json_quoted(code) << ":" << times;
    comma = ",";
  }
  std::cout << "},\"extra\":" << extra << ",\"slowest_ms\":" << slowest << "}" << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (!arguments.empty() && arguments[0] == "--mutate") {
      if (arguments.size() != 4) fail("USAGE", "usage: safetensors_check --mutate SEED COUNT FILE");
      check_mutants(std::stoull(arguments[1]), std::stoull(arguments[2]), arguments[3]);
      return 0;
    }
    for (const std::string& path : arguments) check_file(path);
    if (arguments.empty()) {
      for (std::string path; std::getline(std::cin, path);) check_file(path);
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
