// The memory that tasks work in.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"

namespace attn::cpu {
namespace {

// Hands out pieces of a workspace, each on cache lines of its own; with a null base it measures.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }
  // The workspace beyond what was taken.
  void* rest() const { return base_ + used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// What a T of these arguments takes. Not inlined: it is called rarely, and constructors are long.
template <class T, class... Arguments>
[[gnu::noinline]] int64_t scratch_bytes_of(const Arguments&... arguments) {
  Scratch scratch(nullptr);
  [[maybe_unused]] const T measured(scratch, arguments...);
  return scratch.used();
}

// How many workers of a call ever get a task, and so need scratch.
inline int64_t busy_workers(int64_t workers, int64_t tasks) { return smaller(workers, tasks); }

}  // namespace
}  // namespace attn::cpu
