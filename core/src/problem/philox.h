// Philox4x32-10, the counter-based generator behind dropout.
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.
#pragma once

#include <cstdint>

namespace attn {

// Internal linkage throughout: kernels built for different ISAs include this file, and the linker
// must not share one copy among them.
namespace {

constexpr int kDrawsPerCounter = 4;  // a word each

struct PhiloxWords {
  uint32_t w[kDrawsPerCounter];
};

// Ten rounds over the counter words c0..c3 under the key words k0, k1.
[[maybe_unused]] constexpr PhiloxWords philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2,
                                                     uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9;  // golden ratio
    k1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace

}  // namespace attn
