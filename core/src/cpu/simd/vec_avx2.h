// Eight float32 lanes on AVX2 + FMA + F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/exp2_polynomial.h"

namespace attn::cpu {
namespace {

struct VecAvx2 {
  using Real = float;
  static constexpr int kWidth = 8;
  // 6 x 2 accumulators, 2 columns and 1 broadcast fill 15 of the 16 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;

  using Vec = __m256;
  using Mask = __m256;

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec set1(float x) { return _mm256_set1_ps(x); }
  static Vec iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static Vec select(Mask m, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, m); }

  static Vec exp2(Vec x) {
    // The bound comes first: x86's max returns the second operand if either is NaN.
    x = _mm256_max_ps(set1(kExp2Lowest), x);
    const __m256i n = _mm256_cvtps_epi32(x);
    const Vec r = sub(x, _mm256_cvtepi32_ps(n));
    Vec p = fma(set1(kExp2C5), r, set1(kExp2C4));
    p = fma(p, r, set1(kExp2C3));
    p = fma(p, r, set1(kExp2C2));
    p = fma(p, r, set1(kExp2C1));
    p = fma(p, r, set1(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
    return mul(p, _mm256_castsi256_ps(power));
  }

  static bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
  static float reduce_add(Vec v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float reduce_max(Vec v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  static Vec load_bfloat16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Vec load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bfloat16(uint16_t* p, Vec v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static void store_float16(uint16_t* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  // Lane r is the sum of rows[r]'s lanes. Inlined, lest the rows go through memory.
  [[gnu::always_inline]] static Vec sums_of_lanes(const Vec (&rows)[kWidth]) {
    Vec quads[2];  // lane 4 l + r of quads[q] sums row 4 q + r within its 128-bit lane l
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      const Vec ab = _mm256_hadd_ps(rows[4 * q], rows[4 * q + 1]);
      quads[q] = _mm256_hadd_ps(ab, _mm256_hadd_ps(rows[4 * q + 2], rows[4 * q + 3]));
    }
    return add(_mm256_permute2f128_ps(quads[0], quads[1], 0x20),
               _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
  }

  // Inlined, lest the rows go through memory.
  [[gnu::always_inline]] static void transpose(Vec (&rows)[kWidth]) {
    Vec pairs[8], quads[8];
    for (int r = 0; r < 8; r += 2) {
      pairs[r] = _mm256_unpacklo_ps(rows[r], rows[r + 1]);
      pairs[r + 1] = _mm256_unpackhi_ps(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 8; r += 4) {
      quads[r] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0x44);
      quads[r + 1] = _mm256_shuffle_ps(pairs[r], pairs[r + 2], 0xee);
      quads[r + 2] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0x44);
      quads[r + 3] = _mm256_shuffle_ps(pairs[r + 1], pairs[r + 3], 0xee);
    }
    for (int r = 0; r < 4; ++r) {
      rows[r] = _mm256_permute2f128_ps(quads[r], quads[r + 4], 0x20);
      rows[r + 4] = _mm256_permute2f128_ps(quads[r], quads[r + 4], 0x31);
    }
  }
};

}  // namespace
}  // namespace attn::cpu
