// A block's shared memory between unreadable pages, full of NaN before each block.
#pragma once

#include <cstddef>

namespace attn::cuda::emulation {

class GuardedSharedMemory {
 public:
  explicit GuardedSharedMemory(size_t bytes);
  ~GuardedSharedMemory();
  GuardedSharedMemory(const GuardedSharedMemory&) = delete;
  GuardedSharedMemory& operator=(const GuardedSharedMemory&) = delete;

  char* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }

  void poison();
  // Whether the slack that rounds the size up to the alignment holds what `poison` put there.
  bool is_slack_untouched() const;
  // Whether `address` lies in the pages around it.
  bool is_beside(const void* address) const;

 private:
  char* pages_;
  size_t guard_bytes_, reserved_;
  size_t bytes_, slack_;
  char* begin_;
};

}  // namespace attn::cuda::emulation
