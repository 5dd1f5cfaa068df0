// ptx_probe.h - the host side of ptx_probe.cu on both machines: cases by name, memory, bytes in and out.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../core/error.h"
#include "../machine/simt.h"

namespace cria::CRIA_MACHINE {

// What nobody wrote: the output is full of it before a case runs.
constexpr unsigned char kUnwritten = 0xEE;

#ifdef CRIA_ON_GPU
void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    cria::fail("ERR_DEVICE_FAILED", what, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error));
}

struct Board {
  Stream stream;
  int arch = 0;
  Board() {
    cudaDeviceProp p{};
    check(cudaGetDeviceProperties(&p, 0), "the GPU");
    arch = p.major * 10 + p.minor;
    check(cudaStreamCreate(&stream.handle), "a stream");
  }
  static void* allocate(size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "device memory");
    return memory;
  }
  static void release(void* memory) { cudaFree(memory); }
  static void copy(void* to, const void* from, size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "a copy");
  }
  void finish() const { check(cudaStreamSynchronize(stream.handle), "the kernel"); }
};
#else
struct Board {
  Machine machine;
  Stream stream;
  int arch;
  Board()
      : machine(Options::parse(std::getenv("CRIA_SIMT") ? std::getenv("CRIA_SIMT") : "")),
        stream{&machine},
        arch(machine.options().arch) {}
  static constexpr std::align_val_t kAligned{256};  // as cudaMalloc does
  static void* allocate(size_t bytes) { return ::operator new(bytes, kAligned); }
  static void release(void* memory) { ::operator delete(memory, kAligned); }
  static void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
  void finish() { machine.drain(); }
};
#endif

// One run of a case.
class Probe {
 public:
  Probe(std::vector<unsigned char> input, std::vector<int> numbers)
      : input_(std::move(input)), numbers_(std::move(numbers)) {}
  ~Probe() {
    for (void* m : memory_) Board::release(m);
  }
  Board board;
  const Stream& stream() const { return board.stream; }
  size_t bytes() const { return input_.size(); }
  int number(size_t i) const {
    if (i >= numbers_.size()) cria::fail("ERR_INPUT", "the case has more numbers than were given");
    return numbers_[i];
  }

  // The input, and what becomes the output, in device memory.
  template <class T>
  const T* in() {
    return static_cast<const T*>(keep(input_));
  }
  template <class T>
  T* out(size_t count) {
    output_.assign(count * sizeof(T), kUnwritten);
    return static_cast<T*>(result_ = keep(output_));
  }
  std::vector<unsigned char> finish() {
    board.finish();
    Board::copy(output_.data(), result_, output_.size());
    return output_;
  }

 private:
  void* keep(const std::vector<unsigned char>& bytes) {
    memory_.push_back(Board::allocate(bytes.size() + 16));
    Board::copy(memory_.back(), bytes.data(), bytes.size());
    return memory_.back();
  }
  std::vector<unsigned char> input_, output_;
  std::vector<int> numbers_;
  std::vector<void*> memory_;
  void* result_ = nullptr;
};

struct Case {
  const char* name;
  int arch;   // compute capability, times 10, from which on it runs
  bool only;  // on no other
  std::function<void(Probe&)> run;
};

// A case of one block a problem: in and out are words a block; the kernel gets the words of its block.
using Kernel = void (*)(const uint32_t* in, uint32_t* out);
struct Size {
  unsigned in, out, threads;
  size_t shared = 0;  // bytes
};
inline std::function<void(Probe&)> each_block(const char* name, Kernel kernel, Size size) {
  return [=](Probe& p) {
    const size_t bytes = size.in * sizeof(uint32_t), blocks = p.bytes() / bytes;
    if (blocks == 0 || p.bytes() % bytes != 0)
      cria::fail("ERR_INPUT", name, ": the input has ", p.bytes(), " bytes, expected a multiple of ", bytes);
    const auto* const in = p.in<uint32_t>();
    auto* const out = p.out<uint32_t>(blocks * size.out);
    launch(kernel, name, Shape{dim3(unsigned(blocks)), dim3(size.threads), size.shared}, p.stream(), in, out);
  };
}

// ptx_probe CASE NUMBER... < input > output; ptx_probe --list
inline int probe_main(const std::vector<Case>& cases, int argc, char** argv) {
  try {
    const std::string name = argc > 1 ? argv[1] : "";
    if (name == "--list") {  // one line a case: its name, and why it cannot run here
      const int arch = Board().arch;
      for (const Case& c : cases) {
        std::cout << c.name;
        if (arch < c.arch || (c.only && arch != c.arch))
          std::cout << " needs sm_" << c.arch << (c.only ? "a" : "") << ", this is sm_" << arch;
        std::cout << "\n";
      }
      return 0;
    }
    for (const Case& c : cases) {
      if (name != c.name) continue;
      std::vector<int> numbers;
      for (int i = 2; i < argc; i++) numbers.push_back(std::stoi(argv[i]));
      std::vector<unsigned char> input;
      unsigned char buffer[1 << 16];
      for (size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;)
        input.insert(input.end(), buffer, buffer + n);
      Probe p(std::move(input), std::move(numbers));
      c.run(p);
      const std::vector<unsigned char> output = p.finish();
      return std::fwrite(output.data(), 1, output.size(), stdout) == output.size() ? 0 : 1;
    }
    std::cerr << "usage: ptx_probe CASE NUMBER... < input > output; ptx_probe --list\n";
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
  }
  return 1;
}

}  // namespace cria::CRIA_MACHINE
