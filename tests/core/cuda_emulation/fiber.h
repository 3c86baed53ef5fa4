// Stacks that one thread of the host switches between: the threads of an emulated block. x86-64.
#pragma once

#include <cstddef>

namespace attn::cuda::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next switch to this fiber call `body`, which must not return.
  void start(void (*body)());

  // Leaves the running fiber and goes on where `next` last left.
  static void change(Fiber& running, Fiber& next);

  // Whether `address` lies just below the stack: it has overflowed.
  bool is_below_stack(const void* address) const;

 private:
  char* stack_ = nullptr;
  void* stack_pointer_ = nullptr;
};

}  // namespace attn::cuda::emulation
