// core/src/cuda/device/element.cuh for the emulated GPU.
#pragma once

#include "cuda/device/platform.cuh"
#include "gpu_arithmetic.h"

namespace attn::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Half x) { return gpu::from_half(x.bits); }
inline float to_float(BFloat16 x) { return gpu::from_bfloat16(x.bits); }

template <class Element>
Element from_float(float x) = delete;
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Half from_float<Half>(float x) {
  return {gpu::to_half(x)};
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  return {gpu::to_bfloat16(x)};
}

template <class Element>
uint32_t pack(float low, float high) {
  return from_float<Element>(low).bits | uint32_t{from_float<Element>(high).bits} << 16;
}

inline uint32_t to_tf32(float x) { return gpu::to_tf32(x); }

}  // namespace attn::cuda
