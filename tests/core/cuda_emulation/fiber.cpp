// Saves the registers that a call preserves on one stack, and takes them from another.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <vector>

// void attn_change_stack(void** left, void* entered)
asm(R"(
.text
.type attn_change_stack, @function
attn_change_stack:
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
  popq %rcx
  jmp *%rcx
.size attn_change_stack, .-attn_change_stack
)");

extern "C" void attn_change_stack(void** left, void* entered);

namespace attn::cuda::emulation {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackBytes = 256 * 1024;
constexpr int kSavedRegisters = 6;

// Stacks that no fiber uses: each launch needs a hundred, and mapping them takes longer than it.
std::vector<char*> free_stacks;

char* map_stack() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

}  // namespace

Fiber::Fiber() {
  if (free_stacks.empty()) {
    stack_ = map_stack();
  } else {
    stack_ = free_stacks.back();
    free_stacks.pop_back();
  }
}

Fiber::~Fiber() { free_stacks.push_back(stack_); }

void Fiber::start(void (*body)()) {
  // Stacks that all began at multiples of a page would share a few lines of the cache.
  const size_t unused = reinterpret_cast<uintptr_t>(stack_) / kGuardBytes % 64 * 64;
  // As if `body` had been called, by nobody: its return address lies at a multiple of 16, less 8.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(stack_ + kGuardBytes + kStackBytes - unused) - 1;
  *--top = reinterpret_cast<uintptr_t>(body);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = 0;
  stack_pointer_ = top;
}

void Fiber::change(Fiber& running, Fiber& next) {
  attn_change_stack(&running.stack_pointer_, next.stack_pointer_);
}

bool Fiber::is_below_stack(const void* address) const {
  const char* place = static_cast<const char*>(address);
  return place >= stack_ && place < stack_ + kGuardBytes;
}

}  // namespace attn::cuda::emulation
