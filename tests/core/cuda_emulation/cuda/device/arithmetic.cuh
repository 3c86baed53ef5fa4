// core/src/cuda/device/arithmetic.cuh for the emulated GPU.
#pragma once

#include <cfloat>

#include "cuda/device/platform.cuh"

namespace attn::cuda {

// As far off as the instruction may be, so that nothing is built on an exact result.
inline float exp2_approximate(float x) {
  const float exact = std::exp2(x < -FLT_MAX || x >= -126.0f || x != x ? x : -INFINITY);
  const float off = std::nextafter(std::nextafter(exact, 0.0f), 0.0f);
  return exact == 0.0f || std::isinf(exact) || x == 0.0f ? exact : off;
}

}  // namespace attn::cuda
