// core/src/cuda/device/arithmetic.cuh for the emulated GPU.
#pragma once

#include "cuda/device/platform.cuh"
#include "gpu_arithmetic.h"

namespace attn::cuda {

inline float exp2_approximate(float x) { return gpu::exp2_approximate(x); }

}  // namespace attn::cuda
