// Lanes of a warp, and reductions over the quads that hold a row of a matrix fragment.
#pragma once

#include "cuda/device/platform.cuh"
#include "cuda/device/shuffle.cuh"

namespace attn::cuda {

constexpr int kWarpLanes = 32;

ATTN_DEVICE int lane() { return thread_index() % kWarpLanes; }
ATTN_DEVICE int warp_index() { return thread_index() / kWarpLanes; }

// The largest x of the four lanes 4 q to 4 q + 3; NaN is ignored, as in fmaxf.
ATTN_DEVICE float quad_maximum(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// The sum of x over the four lanes, the same bits in each.
ATTN_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

}  // namespace attn::cuda
