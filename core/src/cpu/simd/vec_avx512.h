// Sixteen float32 lanes on AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/exp2_polynomial.h"

namespace attn::cpu {
namespace {

struct VecAvx512 {
  using Real = float;
  static constexpr int kWidth = 16;
  // 6 x 4 accumulators, 4 columns and 1 broadcast fill 29 of the 32 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 4;

  using Vec = __m512;
  using Mask = __mmask16;

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec set1(float x) { return _mm512_set1_ps(x); }
  static Vec iota() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }

  static Vec exp2(Vec x) {
    const Vec r = fraction(x);
    Vec p = fma(set1(kExp2FractionC5), r, set1(kExp2FractionC4));
    p = fma(p, r, set1(kExp2FractionC3));
    p = fma(p, r, set1(kExp2FractionC2));
    p = fma(p, r, set1(kExp2FractionC1));
    p = fma(p, r, set1(1.0f));
    return _mm512_scalef_ps(p, x);
  }
  // To 3.5e-6.
  static Vec rough_exp2(Vec x) {
    const Vec r = fraction(x);
    Vec p = fma(set1(kRoughExp2C4), r, set1(kRoughExp2C3));
    p = fma(p, r, set1(kRoughExp2C2));
    p = fma(p, r, set1(kRoughExp2C1));
    p = fma(p, r, set1(1.0f));
    return _mm512_scalef_ps(p, x);
  }

  static bool any(Mask m) { return m != 0; }
  static float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
  static float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }

  static Vec load_bfloat16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Vec load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_bfloat16(uint16_t* p, Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i high = _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan, rounded, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
  }
  static void store_float16(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // Lane r is the sum of rows[r]'s lanes. Inlined, lest the rows go through memory.
  [[gnu::always_inline]] static Vec sums_of_lanes(const Vec (&rows)[kWidth]) {
    Vec quads[4];  // lane 4 l + r of quads[q] sums row 4 q + r within its 128-bit lane l
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const Vec a = rows[4 * q], b = rows[4 * q + 1], c = rows[4 * q + 2], d = rows[4 * q + 3];
      const Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
      const Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
      quads[q] = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
    const Vec low = add_neighbours(quads[0], quads[1]), high = add_neighbours(quads[2], quads[3]);
    return add_neighbours(low, high);
  }

  // Inlined, lest the rows go through memory.
  [[gnu::always_inline]] static void transpose(Vec (&rows)[kWidth]) {
    Vec pairs[16], quads[16];
    for (int r = 0; r < 16; r += 2) {
      pairs[r] = _mm512_unpacklo_ps(rows[r], rows[r + 1]);
      pairs[r + 1] = _mm512_unpackhi_ps(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 16; r += 4) {
      quads[r] = _mm512_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
      quads[r + 1] = _mm512_shuffle_ps(pairs[r], pairs[r + 2], 0xee);
      quads[r + 2] = _mm512_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
      quads[r + 3] = _mm512_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xee);
    }
    // quads[4 g + c] holds, in its 128-bit lane l, rows 4 g .. 4 g + 3 of column 4 l + c.
    for (int c = 0; c < 4; ++c) {
      const Vec low01 = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);
      const Vec odd01 = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);
      const Vec low23 = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);
      const Vec odd23 = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
      rows[c] = _mm512_shuffle_f32x4(low01, low23, 0x88);
      rows[8 + c] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
      rows[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
      rows[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
  }

 private:
  // x - floor(x), and vscalef multiplies by 2^floor(x): unlike shifting into the exponent it needs
  // no bounds, but saturates, flushes what is subnormal while a task runs, and keeps NaN.
  static Vec fraction(Vec x) {
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }

  // The sums of neighbouring 128-bit lanes, first a's, then b's.
  static Vec add_neighbours(Vec a, Vec b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
};

}  // namespace
}  // namespace attn::cpu
