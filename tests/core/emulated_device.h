// The GPU that stands in for a real one: what it has, and the order in which it does things.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace gpu {

constexpr int kMultiprocessors = 3;

// 10 * major + minor, as ATTN_EMULATED_CAPABILITY has it.
inline int capability() {
  const char* chosen = std::getenv("ATTN_EMULATED_CAPABILITY");
  return chosen ? std::atoi(chosen) : 80;
}

// Of shared memory, that one block may have.
inline int most_shared_bytes() {
  switch (capability()) {
    case 75: return 64 * 1024;
    case 80: return 163 * 1024;
    case 90:
    case 100: return 227 * 1024;
    default: return 99 * 1024;
  }
}

// Of a launch: each takes another order. ATTN_EMULATION_SEED chooses the first.
inline uint64_t next_seed() {
  static uint64_t seed = [] {
    const char* chosen = std::getenv("ATTN_EMULATION_SEED");
    return chosen ? std::strtoull(chosen, nullptr, 10) : 1;
  }();
  return seed++;
}

}  // namespace gpu
