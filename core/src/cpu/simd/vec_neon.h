// Four float32 lanes on the Advanced SIMD of every AArch64.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "cpu/simd/exp2_polynomial.h"

namespace attn::cpu {
namespace {

struct VecNeon {
  using Real = float;
  static constexpr int kWidth = 4;
  // 5 x 4 accumulators, 4 columns and 5 row elements, which GCC loads ahead of use, fill 29 of the
  // 32 registers; 6 x 4 would spill.
  static constexpr int kTileRows = 5;
  static constexpr int kTileVectors = 4;

  using Vec = float32x4_t;
  using Mask = uint32x4_t;

  static Vec load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Vec v) { vst1q_f32(p, v); }
  static Vec set1(float x) { return vdupq_n_f32(x); }
  static Vec iota() { return Vec{0, 1, 2, 3}; }
  static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
  static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static Vec max(Vec a, Vec b) { return vmaxnmq_f32(a, b); }
  static Mask less(Vec a, Vec b) { return vcltq_f32(a, b); }
  static Mask equal(Vec a, Vec b) { return vceqq_f32(a, b); }
  static Vec select(Mask m, Vec yes, Vec no) { return vbslq_f32(m, yes, no); }

  static Vec exp2(Vec x) {
    // The bound lets NaN through: Arm's max returns NaN if either operand is.
    x = vmaxq_f32(set1(kExp2Lowest), x);
    const int32x4_t n = vcvtnq_s32_f32(x);
    const Vec r = sub(x, vcvtq_f32_s32(n));
    Vec p = fma(set1(kExp2C5), r, set1(kExp2C4));
    p = fma(p, r, set1(kExp2C3));
    p = fma(p, r, set1(kExp2C2));
    p = fma(p, r, set1(kExp2C1));
    p = fma(p, r, set1(1.0f));
    return mul(p, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)));
  }

  static bool any(Mask m) { return vmaxvq_u32(m) != 0; }
  static float reduce_add(Vec v) { return vaddvq_f32(v); }
  static float reduce_max(Vec v) { return vmaxnmvq_f32(v); }

  static Vec load_bfloat16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static Vec load_float16(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static void store_bfloat16(uint16_t* p, Vec v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    vst1_u16(p, vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16));
  }
  static void store_float16(uint16_t* p, Vec v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }

  // Lane r is the sum of rows[r]'s lanes.
  static Vec sums_of_lanes(const Vec (&rows)[kWidth]) {
    return vpaddq_f32(vpaddq_f32(rows[0], rows[1]), vpaddq_f32(rows[2], rows[3]));
  }

  static void transpose(Vec (&rows)[kWidth]) {
    const float32x4x2_t even = vtrnq_f32(rows[0], rows[1]);
    const float32x4x2_t odd = vtrnq_f32(rows[2], rows[3]);
    for (int c = 0; c < 2; ++c) {
      rows[c] = vcombine_f32(vget_low_f32(even.val[c]), vget_low_f32(odd.val[c]));
      rows[c + 2] = vcombine_f32(vget_high_f32(even.val[c]), vget_high_f32(odd.val[c]));
    }
  }
};

}  // namespace
}  // namespace attn::cpu
