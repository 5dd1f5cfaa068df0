// simt_host.cc - the scheduler of the emulated machine.
#include "simt_host.h"

#include <algorithm>

namespace cria::simt {
namespace {

constexpr size_t kCanary = 64;
constexpr unsigned char kCanaryByte = 0xA5, kPoison = 0xFF;  // 0xFFFF is a NaN in bf16, 0xFFFFFFFF in float

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

}  // namespace

std::string Site::text() const { return concat(base_name(file), ":", line); }

namespace {
bool is_number(const std::string& text) {
  return !text.empty() && text.size() < 19 && text.find_first_not_of("0123456789") == std::string::npos;
}
}  // namespace

Options Options::parse(const std::string& text) {
  Options options;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals), value = equals == std::string::npos ? "" : part.substr(equals + 1);
    if (name == "seed" && is_number(value))
      options.seed = std::stoull(value);
    else if (name == "copies" && (value == "early" || value == "late"))
      options.late = value == "late";
    else if (name == "arch" && std::set<std::string>{"80", "86", "89", "90", "100", "120"}.count(value))
      options.arch = std::stoi(value);
    else if (name == "sms" && is_number(value) && value.size() < 5 && std::stoi(value) > 0)
      options.sms = std::stoi(value);
    else if (name == "shared" && is_number(value))
      options.shared = std::stoull(value);
    else if (name == "memory" && is_number(value))
      options.memory = std::stod(value);
    else if (name == "wound" && value.find(':') != std::string::npos)
      options.wound = value;
    else
      cria::fail("ERR_DEVICE_OPTION", "CRIA_SIMT has ", part,
                 ", expected seed=NUMBER, copies=early, copies=late, arch=80, 86, 89, 90, 100 or 120, sms=1 to 9999, "
                 "shared=BYTES, memory=BYTES or wound=FILE:LINE, with commas between");
  }
  return options;
}
std::string Options::text() const {
  return concat("seed=", seed, ",copies=", late ? "late" : "early", ",arch=", arch,
                sms == Options{}.sms ? "" : concat(",sms=", sms), shared ? concat(",shared=", shared) : "",
                wound.empty() ? "" : ",wound=" + wound);
}

size_t Options::most_shared() const {
  return shared ? shared : size_t{arch == 80 ? 163u : arch == 90 || arch == 100 ? 227u : 99u} << 10;
}

Machine::~Machine() { abandon(); }

std::vector<Launch> Machine::take() {
  std::vector<Launch> all;
  for (auto& launch : queue_) all.push_back(std::move(*launch));
  queue_.clear();
  return all;
}

uint64_t Machine::random(uint64_t below) {
  random_ += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = random_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (z ^ (z >> 31)) % below;
}

bool Machine::wounded(Site site) { return wound_file_ == base_name(site.file); }

// --- What instructions use

void Machine::wait(const char* what, Site site, bool (*over)(void*), void* condition) {
  Thread& t = *current;
  t.state = Thread::State::waiting;
  t.what = what;
  t.site = site;
  t.over = over;
  t.condition = condition;
  t.fiber.stop();
}

unsigned char* Block::async_view() {
  if (async.empty()) async.assign(launch->shared, kPoison);
  return async.data();
}

[[noreturn]] void misuse(const std::string& message, Site site) {
  const Thread& t = *current;
  const Block& b = block();
  cria::fail("ERR_DEVICE_KERNEL", b.launch->name, ", ", site.text(), ": ", message, " (block ", b.id.x, ",", b.id.y,
             ",", b.id.z, " thread ", t.id.x, ")");
}

Collective& join(uint32_t mask, void* mine, const char* what, Site site) {
  Thread& t = *current;
  Warp& w = *t.warp;
  const uint32_t me = 1u << t.lane;
  if (!(mask & me)) misuse(concat(what, " by a lane that its mask does not name"), site);
  if (w.lanes < 32 && mask >> w.lanes) misuse(concat(what, " names lanes that the warp does not have"), site);
  Collective* free = nullptr;
  for (Collective& c : w.open) {
    if (!c.arrived) {
      free = &c;
    } else if (c.mask & mask) {
      if (c.mask != mask || c.what != what || !(c.site == site))
        misuse(concat(what, " while other lanes of its mask are at ", c.what, ", ", c.site.text()), site);
      c.mine[t.lane] = mine;
      c.arrived |= me;
      return c;
    }
  }
  if (!free) misuse("more than four groups of lanes at warp-wide instructions", site);
  free->mask = mask;
  free->arrived = me;
  free->site = site;
  free->what = what;
  free->mine[t.lane] = mine;
  return *free;
}

void finish(Collective& c) {
  Warp& w = *current->warp;
  for (unsigned i = 0; i < w.lanes; i++)
    if (c.mask >> i & 1) w.lane[i]->state = Thread::State::ready;
  c.arrived = 0;
}

void barrier(int id, unsigned threads, Site site) {
  if (machine->removed(site)) return;
  Block& b = block();
  Block::Barrier& bar = b.barriers[id];
  if (threads == 0) threads = unsigned(b.threads.size());
  if (bar.arrived && (bar.expected != threads || (id == 0 && !(bar.site == site))))
    misuse(concat("other threads of the block wait at another barrier, ", bar.site.text()), site);
  bar.expected = threads;
  bar.site = site;
  if (++bar.arrived < threads) {
    current->barrier = id;
    return Machine::wait("a barrier of the block", site);
  }
  bar.arrived = 0;
  for (Thread& t : b.threads)
    if (t.barrier == id) {
      t.barrier = -1;
      t.state = Thread::State::ready;
    }
}

// --- Scheduling

void Machine::thread_main(void* thread) {
  Thread& t = *static_cast<Thread*>(thread);
  try {
    t.warp->block->launch->body();
    if (t.warp->block->launch->dependent && !t.waited)
      misuse("a thread of a programmatic dependent has ended without grid_wait()", t.site);
    for (const auto& group : t.groups)
      if (!group.empty()) misuse("the thread has ended with a cp.async that it never waited for", t.site);
    for (const auto& group : t.warp->products)
      if (!group.empty()) misuse("the warp has ended with a wgmma that it never waited for", t.site);
  } catch (...) {
    if (!machine->error_) machine->error_ = std::current_exception();
  }
  t.state = Thread::State::done;
  t.fiber.stop();
}

void Machine::start(Block& b, Launch& launch, uint64_t index) {
  const size_t count = size_t(launch.block.x) * launch.block.y * launch.block.z;
  b.launch = &launch;
  b.id = dim3(unsigned(index % launch.grid.x), unsigned(index / launch.grid.x % launch.grid.y),
              unsigned(index / launch.grid.x / launch.grid.y));
  b.live = unsigned(count);
  b.memory.assign(launch.shared + 2 * kCanary + 1024, kCanaryByte);
  // Aligned as the hardware does it: to 1024 bytes, which swizzled tiles rely on.
  b.shared = b.memory.data() + kCanary;
  b.shared += (1024 - reinterpret_cast<uintptr_t>(b.shared) % 1024) % 1024;
  std::memset(b.shared, kPoison, launch.shared);
  b.async.clear();
  b.flights.clear();
  for (auto& bar : b.barriers) bar = {};
  while (b.threads.size() > count) {
    stacks_.put(b.threads.back().stack);
    b.threads.pop_back();
  }
  const size_t had = b.threads.size();
  b.threads.resize(count);
  for (size_t i = had; i < count; i++) b.threads[i].stack = stacks_.get();
  b.warps.assign((count + 31) / 32, {});
  for (size_t i = 0; i < count; i++) {
    Thread& t = b.threads[i];
    Warp& w = b.warps[i / 32];
    t.id = dim3(unsigned(i % launch.block.x), unsigned(i / launch.block.x % launch.block.y),
                unsigned(i / launch.block.x / launch.block.y));
    t.lane = unsigned(i % 32);
    t.state = Thread::State::ready;
    t.warp = &w;
    t.barrier = -1;
    t.waited = false;
    t.site = {launch.name.c_str(), 0};
    t.groups.assign(1, {});
    w.block = &b;
    w.lane[w.lanes++] = &t;
    w.live++;
    t.fiber.start(t.stack, &thread_main, &t);
  }
}

// A whole cluster, or nothing.
void Machine::start_blocks(Launch& launch) {
  std::vector<Block*> members;
  for (unsigned rank = 0; rank < launch.cluster; rank++) {
    if (idle_.empty()) idle_.push_back(std::make_unique<Block>());
    resident_.push_back(std::move(idle_.back()));
    idle_.pop_back();
    members.push_back(resident_.back().get());
    start(*members.back(), launch, launch.next++);
    members.back()->rank = rank;
  }
  for (Block* b : members) b->cluster = members;
}

// Runs the warp until none of its lanes can go on; whether any could.
// left_out: a lane, or none.
bool Machine::run(Warp& w, unsigned left_out) {
  bool progress = false;
  for (bool again = true; again;) {
    again = false;
    // Any lane first, forwards or backwards: what one lane leaves for another needs a __syncwarp.
    const unsigned first = unsigned(random(w.lanes)), step = chance() ? 1 : w.lanes - 1;
    for (unsigned i = 0, l = first; i < w.lanes; i++, l = (l + step) % w.lanes) {
      if (l == left_out) continue;
      Thread& t = *w.lane[l];
      if (t.state == Thread::State::waiting && t.over && t.over(t.condition)) {
        t.over = nullptr;
        t.state = Thread::State::ready;
      }
      if (t.state != Thread::State::ready) continue;
      current = &t;
      t.fiber.resume();
      again = progress = true;
      if (error_) return true;
      if (t.state == Thread::State::done) {
        w.live--;
        w.block->live--;
      }
    }
  }
  return progress;
}

// Visits warps in random order. Now and then warps are left out, and one of them, or one of its lanes, for a long time,
// so that others get far ahead.
bool Machine::epoch(bool everybody) {
  std::vector<Warp*> warps;
  for (auto& b : resident_)
    for (Warp& w : b->warps)
      if (w.live) warps.push_back(&w);
  for (size_t i = warps.size(); i > 1; i--) std::swap(warps[i - 1], warps[random(i)]);
  if (!everybody && !warps.empty() && (hunger_ == 0 || hunger_-- == 1)) {
    starved_ = warps[random(warps.size())];
    hunger_ = random(12);
    starved_lane_ = unsigned(random(64));
  }
  const uint64_t left_out = random(4);  // of four
  bool progress = false;
  for (Warp* w : warps) {
    const bool starved = !everybody && w == starved_, lane_alone = starved && starved_lane_ < w->lanes;
    if (!lane_alone && (starved || (!everybody && random(4) < left_out))) continue;
    progress |= run(*w, lane_alone ? starved_lane_ : ~0u);
    if (error_) {
      const std::exception_ptr error = std::exchange(error_, nullptr);
      try {
        std::rethrow_exception(error);
      } catch (const Error& e) {
        cria::fail(e.code.c_str(), e.what(), "; CRIA_SIMT=", options_.text(), " repeats it");
      }
    }
  }
  return progress;
}

void Machine::retire() {
  for (size_t i = 0; i < resident_.size();) {
    // A block of a cluster stays until the others are done: they may still read its shared memory.
    Block& b = *resident_[i];
    if (std::any_of(b.cluster.begin(), b.cluster.end(), [](const Block* m) { return m->live > 0; })) {
      i++;
      continue;
    }
    const size_t used = b.launch->shared;
    const auto broken = [&](const unsigned char* from, size_t bytes) {
      return std::any_of(from, from + bytes, [](unsigned char c) { return c != kCanaryByte; });
    };
    if (broken(b.shared - kCanary, kCanary) || broken(b.shared + used, kCanary))
      cria::fail("ERR_DEVICE_KERNEL", b.launch->name, ": wrote outside of its ", used,
                 " bytes of shared memory; CRIA_SIMT=", options_.text(), " repeats it");
    if (!b.flights.empty())
      cria::fail("ERR_DEVICE_KERNEL", b.launch->name,
                 ": a block has ended with a copy into its shared memory in flight; CRIA_SIMT=", options_.text(),
                 " repeats it");
    b.launch->ended++;
    b.live = 0;
    idle_.push_back(std::move(resident_[i]));
    resident_.erase(resident_.begin() + std::ptrdiff_t(i));
  }
}

void Machine::deadlock() {
  std::string who;
  size_t more = 0;
  for (auto& b : resident_)
    for (Thread& t : b->threads) {
      if (t.state != Thread::State::waiting) continue;
      if (who.size() > 400)
        more++;
      else
        who += concat("; block ", b->id.x, ",", b->id.y, ",", b->id.z, " thread ", t.id.x, " waits for ", t.what,
                      " at ", t.site.text());
    }
  if (more) who += concat("; and ", more, " more");
  cria::fail("ERR_DEVICE_KERNEL", resident_.front()->launch->name, ": nobody can go on", who,
             "; CRIA_SIMT=", options_.text(), " repeats it");
}

void Machine::abandon() {
  for (auto& b : resident_) idle_.push_back(std::move(b));
  resident_.clear();
  queue_.clear();
}

void Machine::drain() {
  if (!options_.wound.empty() && !std::exchange(wound_read_, true)) {
    const size_t colon = options_.wound.rfind(':');
    wound_file_ = options_.wound.substr(0, colon);
    wound_line_ = std::atoi(options_.wound.c_str() + colon + 1);
  }
  Machine* const before = std::exchange(machine, this);
  try {
    while (!queue_.empty()) {
      Launch& now = *queue_.front();
      Launch* const dependent = queue_.size() > 1 && queue_[1]->dependent ? queue_[1].get() : nullptr;
      if (dependent) {
        dependent->predecessor_done = false;
        // The dependent gets a head start, or none, of up to four clusters.
        for (uint64_t i = random(5); i > 0 && dependent->next < dependent->blocks(); i--) start_blocks(*dependent);
        while (epoch(true)) {
        }
      }
      retire();                             // blocks of this launch may have come to their end meanwhile
      const uint64_t most = 1 + random(4);  // clusters at once
      while (now.ended < now.blocks()) {
        uint64_t here = 0;
        for (auto& b : resident_) here += b->launch == &now;
        for (; here < most * now.cluster && now.next < now.blocks(); here += now.cluster) start_blocks(now);
        if (!epoch(false) && !epoch(true)) deadlock();
        retire();
      }
      if (dependent) dependent->predecessor_done = true;
      queue_.pop_front();
    }
  } catch (...) {
    abandon();
    machine = before;
    throw;
  }
  machine = before;
}

}  // namespace cria::simt
