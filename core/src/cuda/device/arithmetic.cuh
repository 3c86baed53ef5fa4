// The approximations that a multiprocessor has instructions for.
#pragma once

#include "cuda/device/platform.cuh"

namespace attn::cuda {

// 2^x within 2 units in the last place; results below FLT_MIN are 0; 2^-infinity is 0.
ATTN_DEVICE float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace attn::cuda
