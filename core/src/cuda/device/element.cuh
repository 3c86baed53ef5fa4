// The elements of queries, keys and values, and their conversions from and to float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/device/platform.cuh"

namespace attn::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

ATTN_DEVICE float to_float(float x) { return x; }
ATTN_DEVICE float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
ATTN_DEVICE float to_float(BFloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

// Rounds to the nearest, ties to even.
template <class Element>
ATTN_DEVICE Element from_float(float x) = delete;
template <>
ATTN_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
ATTN_DEVICE Half from_float<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
ATTN_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// Two rounded elements as one register of a matrix fragment; `low` lies first in memory.
template <class Element>
ATTN_DEVICE uint32_t pack(float low, float high) = delete;
template <>
ATTN_DEVICE uint32_t pack<Half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
ATTN_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The nearest TF32 number (10 bits of mantissa, ties away from zero), as the bits of a float.
ATTN_DEVICE uint32_t to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  return __float_as_uint(x);
#endif
}

}  // namespace attn::cuda
