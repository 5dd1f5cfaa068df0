// simt_host.h - the dialect on the host: every GPU thread is a fiber.
//
// The machine is adversarial: it does what the programming model allows and a lucky GPU seldom does. Warps run as far
// ahead of each other as barriers let them, lanes and warps and blocks go in random order, asynchronous copies land at
// the first or at the last legal moment, a programmatic dependent runs up to its wait before its predecessor starts,
// shared memory begins as NaN. All of it follows from one seed.
#pragma once
#include <math.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../core/error.h"
#include "fiber.h"

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's words
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// NOLINTEND(bugprone-reserved-identifier)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace cria::simt {

// Where a barrier, wait, fence or guard stands in a source file. Passed as a default argument, so it is the caller's.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  std::string text() const;  // "rms_norm.cu:31"
  bool operator==(const Site& s) const { return line == s.line && std::strcmp(file, s.file) == 0; }
};

// From the environment variable CRIA_SIMT: "seed=7,copies=late,arch=80,wound=rms_norm.cu:31". A failure prints the
// string that repeats it.
struct Options {
  uint64_t seed = 0;
  bool late = true;      // asynchronous copies land when somebody waits for them, not when they are issued
  int arch = 90;         // compute capability, times 10: which kernels are chosen
  int sms = 4;           // multiprocessors: how work is cut, and blocks in a grid
  size_t shared = 0;     // bytes of shared memory that a block can have; 0: what GPUs of `arch` give
  double memory = 64e9;  // bytes that the device says it has
  std::string wound;     // the site that does nothing
  static Options parse(const std::string& text);
  std::string text() const;
  size_t most_shared() const;
};

struct Launch;
struct Block;
struct Warp;

struct Thread {
  enum class State : uint8_t { ready, waiting, done };
  Fiber fiber;
  void* stack = nullptr;
  dim3 id;
  unsigned lane = 0;
  State state = State::ready;
  Warp* warp = nullptr;
  // While waiting: where, for what, and (for what no other thread announces) how to find out that it is over.
  Site site{};
  const char* what = nullptr;
  bool (*over)(void*) = nullptr;
  void* condition = nullptr;
  int barrier = -1;
  bool waited = false;  // for the kernel before
  // cp.async: groups of copies in flight, the one being filled last.
  struct Copy {
    void* to;
    const void* from;
    int bytes, valid;  // bytes from `valid` on become zero
  };
  std::vector<std::vector<Copy>> groups;
};

// Lanes that have arrived at one warp-wide instruction, each with its operands.
struct Collective {
  uint32_t mask = 0, arrived = 0;
  Site site{};
  const char* what = nullptr;
  void* mine[32];
};

struct Warp {
  Block* block = nullptr;
  Thread* lane[32];
  unsigned lanes = 0, live = 0;
  Collective open[4];  // with disjoint masks
  // wgmma: groups of products under way, the one being filled last; whether it may be filled.
  std::vector<std::vector<std::function<void()>>> products{1};
  bool fenced = false;
};

struct Block {
  Launch* launch = nullptr;
  dim3 id;
  unsigned rank = 0;            // in its cluster
  std::vector<Block*> cluster;  // by rank; itself alone without a cluster
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned live = 0;
  std::vector<unsigned char> memory;  // canary, shared memory, canary
  unsigned char* shared = nullptr;
  std::vector<unsigned char> async;  // what the asynchronous proxy sees of shared memory; empty until somebody asks
  unsigned char* async_view();       // nothing but NaN that was not copied or published
  struct Barrier {
    unsigned arrived = 0, expected = 0;
    Site site{};
  } barriers[16];
  struct Flight {  // an asynchronous copy that completes on an mbarrier
    uint64_t* barrier;
    unsigned bytes;
    std::function<void()> land;
  };
  std::vector<Flight> flights;
};

struct Launch {
  std::function<void()> body;
  const void* kernel = nullptr;
  std::string name;
  dim3 grid, block;
  size_t shared = 0;
  unsigned cluster = 1;
  bool dependent = false;  // programmatic: may start before its predecessor has ended
  uint64_t next = 0;       // block to start next
  uint64_t ended = 0;
  bool predecessor_done = true;
  uint64_t blocks() const { return uint64_t{grid.x} * grid.y * grid.z; }
};

class Machine {
 public:
  explicit Machine(Options options) : options_(std::move(options)), random_(options_.seed * 2 + 1) {}
  ~Machine();
  // A launch; it runs when the queue is drained.
  void submit(Launch launch) { queue_.push_back(std::make_unique<Launch>(std::move(launch))); }
  std::vector<Launch> take();  // instead of running it
  void drain();  // runs everything; throws ERR_DEVICE_KERNEL with where, who waits, and the options that repeat it

  const Options& options() const { return options_; }
  uint64_t random(uint64_t below);
  bool chance() { return random(2) == 0; }
  // Whether the instruction there shall do nothing; remembers that it was met.
  bool removed(Site site) {
    if (recording) sites.insert(site.text());
    return site.line == wound_line_ && wounded(site);
  }
  bool recording = false;
  std::set<std::string> sites;

  // For the instructions.
  static void wait(const char* what, Site site, bool (*over)(void*) = nullptr, void* condition = nullptr);
  void fail(const std::string& message, Site site);

 private:
  void start_blocks(Launch& launch);
  void start(Block& block, Launch& launch, uint64_t index);
  bool run(Warp& warp, unsigned left_out);
  bool epoch(bool everybody);
  void retire();
  void abandon();
  [[noreturn]] void deadlock();
  bool wounded(Site site);

  Options options_;
  uint64_t random_;
  const Warp* starved_ = nullptr;  // left out for some time, to fall behind
  uint64_t hunger_ = 0;            // how long still
  unsigned starved_lane_ = 0;      // that lane alone; beyond the lanes there are: all of them
  int wound_line_ = -1;
  bool wound_read_ = false;
  std::string wound_file_;
  Stacks stacks_;
  std::deque<std::unique_ptr<Launch>> queue_;
  std::vector<std::unique_ptr<Block>> resident_, idle_;
  std::exception_ptr error_;
  static void thread_main(void* thread);
};

inline thread_local Thread* current __attribute__((tls_model("initial-exec"))) = nullptr;
inline thread_local Machine* machine __attribute__((tls_model("initial-exec"))) = nullptr;

inline Block& block() { return *current->warp->block; }
// An instruction that is used wrongly.
[[noreturn]] void misuse(const std::string& message, Site site);

Collective& join(uint32_t mask, void* mine, const char* what, Site site);
void finish(Collective& c);
// A warp-wide instruction: each lane gives its operands, the last one to arrive does the work of all, on theirs.
template <class T, class All>
void collective(uint32_t mask, T& mine, const char* what, Site site, const All& all) {
  Collective& c = join(mask, &mine, what, site);
  if (c.arrived != c.mask) return Machine::wait(what, site);
  all(reinterpret_cast<T* const*>(c.mine));
  finish(c);
}

void barrier(int id, unsigned threads, Site site);

}  // namespace cria::simt

#define threadIdx (::cria::simt::current->id)
#define blockIdx (::cria::simt::block().id)
#define blockDim (::cria::simt::block().launch->block)
#define gridDim (::cria::simt::block().launch->grid)
