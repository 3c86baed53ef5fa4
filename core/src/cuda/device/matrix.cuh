// The matrix instructions of a warp. Fragments lie over its lanes as the PTX ISA lays them out for
// mma.m16n8k16 and mma.m16n8k8. With g = lane() / 4 and t = lane() % 4:
//   16-bit A [16, 16]: a[0] (g, 2t..2t+1), a[1] (g+8, 2t..), a[2] (g, 2t+8..), a[3] (g+8, 2t+8..)
//   16-bit B [16, 8]:  b[0] (2t..2t+1, g), b[1] (2t+8..2t+9, g)
//   TF32   A [16, 8]:  a[0] (g, t), a[1] (g+8, t), a[2] (g, t+4), a[3] (g+8, t+4)
//   TF32   B [8, 8]:   b[0] (t, g), b[1] (t+4, g)
//   D [16, 8]:         d[0..1] (g, 2t..2t+1), d[2..3] (g+8, 2t..2t+1)
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/device/instructions.cuh"

namespace attn::cuda {

// Loads four 8 x 8 matrices of 16-bit elements. Lane l names row l % 8 of matrix l / 8: 16 bytes of
// shared memory, aligned to 16. r[i] becomes elements (g, 2t..2t+1) of matrix i.
ATTN_DEVICE void load_matrices(uint32_t (&r)[4], const void* shared_row) {
#if defined(__CUDA_ARCH__)
  cute::SM75_U32x4_LDSM_N::copy(*static_cast<const cute::uint128_t*>(shared_row), r[0], r[1], r[2],
                                r[3]);
#endif
}

// Likewise; r[i] becomes elements (2t..2t+1, g) of matrix i.
ATTN_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* shared_row) {
#if defined(__CUDA_ARCH__)
  cute::SM75_U16x8_LDSM_T::copy(*static_cast<const cute::uint128_t*>(shared_row), r[0], r[1], r[2],
                                r[3]);
#endif
}

// d += a b, in float32. m16n8k16 of Half or BFloat16; before sm_80 Half alone.
template <class Element>
ATTN_DEVICE void multiply_accumulate(float (&d)[4], const uint32_t (&a)[4],
                                     const uint32_t (&b)[2]) = delete;

template <>
ATTN_DEVICE void multiply_accumulate<Half>(float (&d)[4], const uint32_t (&a)[4],
                                           const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  cute::SM80_16x8x16_F32F16F16F32_TN::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0],
                                          b[1], d[0], d[1], d[2], d[3]);
#elif defined(__CUDA_ARCH__)
  using Instruction = cute::SM75_16x8x8_F32F16F16F32_TN;
  Instruction::fma(d[0], d[1], d[2], d[3], a[0], a[1], b[0], d[0], d[1], d[2], d[3]);
  Instruction::fma(d[0], d[1], d[2], d[3], a[2], a[3], b[1], d[0], d[1], d[2], d[3]);
#endif
}

template <>
ATTN_DEVICE void multiply_accumulate<BFloat16>(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  cute::SM80_16x8x16_F32BF16BF16F32_TN::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0],
                                            b[1], d[0], d[1], d[2], d[3]);
#else
  __trap();
#endif
}

// d += a b, in float32: m16n8k8 of TF32 numbers. Not before sm_80.
ATTN_DEVICE void multiply_accumulate_tf32(float (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  cute::SM80_16x8x8_F32TF32TF32F32_TN::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b[0],
                                           b[1], d[0], d[1], d[2], d[3]);
#else
  __trap();
#endif
}

}  // namespace attn::cuda
