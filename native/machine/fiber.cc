// fiber.cc - the switch by hand for x86-64 and aarch64, ucontext elsewhere (or with CRIA_UCONTEXT, to compare).
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(CRIA_UCONTEXT) && (defined(__x86_64__) || defined(__aarch64__))
#define CRIA_SWITCH 1
#else
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CRIA_FORGET_FRAMES(stack, bytes) ASAN_UNPOISON_MEMORY_REGION(stack, bytes)  // of fibers that never returned
#else
#define CRIA_FORGET_FRAMES(stack, bytes)
#endif

namespace cria::simt {

struct Stacks::Chunk {
  Chunk* next;
  void* memory;
};
namespace {
constexpr size_t kStacksPerChunk = 256;
}

Stacks::~Stacks() {
  while (chunks_) {
    Chunk* c = chunks_;
    chunks_ = c->next;
    CRIA_FORGET_FRAMES(c->memory, kStacksPerChunk * kBytes);
    munmap(c->memory, kStacksPerChunk * kBytes);
    delete c;
  }
}

void* Stacks::get() {
  if (!free_) {
    void* memory = mmap(nullptr, kStacksPerChunk * kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    chunks_ = new Chunk{chunks_, memory};
    for (size_t i = 0; i < kStacksPerChunk; i++) put(static_cast<char*>(memory) + i * kBytes);
  }
  void* stack = free_;
  free_ = *reinterpret_cast<void**>(static_cast<char*>(stack) + kBytes - sizeof(void*));
  return stack;
}

// The link lies at the top of the stack, in a page that is in use anyway.
void Stacks::put(void* at) {
  *reinterpret_cast<void**>(static_cast<char*>(at) + kBytes - sizeof(void*)) = free_;
  free_ = at;
}

void fiber_entry(Fiber* self) { Fiber::entry(self); }

void Fiber::entry(Fiber* self) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_bytes_);
#endif
  self->body_(self->arg_);
}

#ifdef CRIA_SWITCH
extern "C" void cria_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.local cria_switch
.type cria_switch, @function
cria_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cria_switch, .-cria_switch
.local cria_begin
.type cria_begin, @function
cria_begin:
  movq %r12, %rdi
  callq *%r13
  ud2
.size cria_begin, .-cria_begin
)");
#else
asm(R"(
.text
.p2align 4
.local cria_switch
.type cria_switch, %function
cria_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size cria_switch, .-cria_switch
.local cria_begin
.type cria_begin, %function
cria_begin:
  mov x0, x19
  blr x20
  brk #1
.size cria_begin, .-cria_begin
)");
#endif
extern "C" void cria_begin();

void Fiber::start(void* stack, void (*body)(void*), void* arg) {
  CRIA_FORGET_FRAMES(stack, Stacks::kBytes);
  stack_ = stack;
  body_ = body;
  arg_ = arg;
  auto* top = reinterpret_cast<void**>(static_cast<char*>(stack) + Stacks::kBytes);
#if defined(__x86_64__)
  // What cria_switch pops: r15 r14 r13 r12 rbx rbp, then the address that it returns to. 16-byte aligned at the call.
  top -= 9;
  top[2] = reinterpret_cast<void*>(&fiber_entry);  // r13
  top[3] = this;                                   // r12
  top[5] = nullptr;
  top[6] = reinterpret_cast<void*>(&cria_begin);
#else
  top -= 20;
  top[0] = this;                                   // x19
  top[1] = reinterpret_cast<void*>(&fiber_entry);  // x20
  top[10] = nullptr;                               // x29
  top[11] = reinterpret_cast<void*>(&cria_begin);  // x30
#endif
  here_ = top;
}
#else
namespace {
struct Contexts {
  ucontext_t fiber, caller;
};
void trampoline(unsigned low, unsigned high) { fiber_entry(reinterpret_cast<Fiber*>(uintptr_t{high} << 32 | low)); }
}  // namespace
void Fiber::start(void* stack, void (*body)(void*), void* arg) {
  CRIA_FORGET_FRAMES(stack, Stacks::kBytes);
  stack_ = stack;
  body_ = body;
  arg_ = arg;
  // The contexts lie at the bottom of the stack.
  auto* both = new (stack) Contexts;
  constexpr size_t used = (sizeof(Contexts) + 63) / 64 * 64;
  getcontext(&both->fiber);
  both->fiber.uc_stack.ss_sp = static_cast<char*>(stack) + used;
  both->fiber.uc_stack.ss_size = Stacks::kBytes - used - 64;
  both->fiber.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&both->fiber, reinterpret_cast<void (*)()>(&trampoline), 2, unsigned(self), unsigned(self >> 32));
}
#endif

void Fiber::resume() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_caller_, stack_, Stacks::kBytes);
#endif
#ifdef CRIA_SWITCH
  cria_switch(&caller_, here_);
#else
  auto* both = static_cast<Contexts*>(stack_);
  swapcontext(&both->caller, &both->fiber);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_caller_, nullptr, nullptr);
#endif
}

void Fiber::stop() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_here_, caller_stack_, caller_bytes_);
#endif
#ifdef CRIA_SWITCH
  cria_switch(&here_, caller_);
#else
  auto* both = static_cast<Contexts*>(stack_);
  swapcontext(&both->fiber, &both->caller);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_here_, &caller_stack_, &caller_bytes_);
#endif
}

}  // namespace cria::simt
