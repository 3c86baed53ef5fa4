// What a launch does to global memory, which is the host's: who wrote and read each byte, and what
// blocks tell each other.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "access.h"

namespace attn::ptx {

// Of each block, how many of its barriers are known to be passed.
using KnownBarriers = std::vector<uint32_t>;

// Makes `known` know what `other` knows.
void learn(KnownBarriers& known, const KnownBarriers& other);

class GlobalMemory {
 public:
  explicit GlobalMemory(size_t blocks) : blocks_(blocks) {}

  // Each ends the process where the access is misaligned or races with another.
  void read(uint64_t address, size_t bytes, const Moment& now, void* target);
  void write(uint64_t address, size_t bytes, const Moment& now, const void* source);

  // What was done before the latest barrier of the block that stores a word, and all that it knows,
  // is known to whoever loads it after that.
  uint32_t acquire(uint64_t address, KnownBarriers& known);
  void release(uint64_t address, uint32_t value, const Moment& now);
  // Returns what was there. Orders nothing.
  uint32_t add(uint64_t address, uint32_t value);

 private:
  static constexpr size_t kPageBytes = 1024;
  struct Byte {
    Access written, read;
  };
  using Page = std::array<Byte, kPageBytes>;

  Byte& byte_at(uint64_t address);

  size_t blocks_;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  uint64_t latest_number_ = 0;
  Page* latest_ = nullptr;
  std::unordered_map<uint64_t, KnownBarriers> released_;
};

}  // namespace attn::ptx
