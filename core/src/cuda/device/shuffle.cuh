// The exchanges between the lanes of a warp, which all its 32 lanes must join.
#pragma once

#include "cuda/device/platform.cuh"

namespace attn::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// Returns the value that `source` brought. T has 4 or 8 bytes.
template <class T>
ATTN_DEVICE T shuffle(T value, int source) {
  return __shfl_sync(kAllLanes, value, source);
}

// Returns the value of lane `lane() ^ mask`.
template <class T>
ATTN_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

// Whether it holds in any lane.
ATTN_DEVICE bool any(bool condition) { return __any_sync(kAllLanes, condition) != 0; }

}  // namespace attn::cuda
