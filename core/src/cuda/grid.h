// How many blocks of threads a launch has, and how many it may have.
#pragma once

#include <cstdint>

#include "problem/refusal.h"

namespace attn::cuda {

// Extents in blocks.
struct Grid {
  int64_t x = 1, y = 1, z = 1;

  bool is_empty() const { return x == 0 || y == 0 || z == 0; }
};

// Throws Refusal if no GPU takes so many: their number would be cut to 32 bits.
inline void require_launchable(const Grid& grid) {
  constexpr int64_t kMostAlongX = INT32_MAX, kMostAlongYAndZ = 65535;
  if (grid.x <= kMostAlongX && grid.y <= kMostAlongYAndZ && grid.z <= kMostAlongYAndZ) return;
  refuse_unsupported(
      "expected a call of at most 2^31 - 1 by 65535 by 65535 blocks of threads on a GPU, got %lld "
      "by %lld by %lld; split its batch elements, heads or widths",
      static_cast<long long>(grid.x), static_cast<long long>(grid.y),
      static_cast<long long>(grid.z));
}

}  // namespace attn::cuda
