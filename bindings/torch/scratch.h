// The memory a call works in: on the stack where little is needed, else on the heap.
#pragma once

#include <cstddef>
#include <memory>

namespace attn_torch {

class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes) {
    // Default-initialised: the kernels write before they read.
    if (bytes > sizeof(inline_)) heap_.reset(new char[bytes]);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() { return heap_ ? heap_.get() : inline_; }
  size_t bytes() const { return bytes_; }

 private:
  // Saves the smallest calls, a few microseconds long, an allocation.
  alignas(64) char inline_[8192];
  std::unique_ptr<char[]> heap_;
  size_t bytes_;
};

}  // namespace attn_torch
