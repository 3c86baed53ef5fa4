// Operands of two bfloat16 elements per 32-bit unit, multiplied by vdpbf16ps (AVX512-BF16).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/kernels/operand-inl.h"
#include "cpu/simd/vec_avx512.h"

namespace attn::cpu {
namespace {

struct BFloat16Pairs {
  using S = VecAvx512;
  using Unit = float;  // only a 32-bit container; never computed with as a float
  using Vec = __m512;
  using Flag = __mmask32;
  static constexpr int kDepth = 2;
  static constexpr DType kDType = DType::kBFloat16;

  static Vec dot(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  template <DType kSource, bool kWhole = false>
  static Vec load_units(const char* row, int64_t unit, int64_t width) {
    uint16_t halves[32];
    const int64_t index = 2 * unit;
    const int64_t left = kWhole ? 32 : width - index;
    if constexpr (kSource == DType::kBFloat16) {
      const char* p = row + 2 * index;
      if (left < 32) {
        std::memset(halves, 0, sizeof halves);
        std::memcpy(halves, p, static_cast<size_t>(left) * 2);
        p = reinterpret_cast<const char*>(halves);
      }
      return _mm512_loadu_ps(p);
    } else {
      S::store_bfloat16(halves, load_elements<S, kSource, kWhole>(row, index, width));
      if (left > 16) {
        S::store_bfloat16(halves + 16, load_elements<S, kSource, kWhole>(row, index + 16, width));
      } else {
        std::memset(halves + 16, 0, 32);
      }
      return _mm512_loadu_ps(halves);
    }
  }

  template <DType kSource, bool kWhole>
  static __m512i load_halves(const char* row, int64_t column, int64_t width) {
    uint16_t halves[16];
    const int64_t left = kWhole ? 16 : width - column;
    if constexpr (kSource == DType::kBFloat16) {
      const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + column;
      if (left < 16) {
        std::memset(halves, 0, sizeof halves);
        std::memcpy(halves, p, static_cast<size_t>(left) * 2);
        p = halves;
      }
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    } else {
      S::store_bfloat16(halves, load_elements<S, kSource, kWhole>(row, column, width));
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    }
  }

  // `present` rows (1 or 2) exist; a missing second one counts as 0.
  template <DType kSource, bool kWhole = false>
  static Vec load_columns(const char* const* rows, int64_t present, int64_t column,
                          int64_t width) {
    __m512i pair = load_halves<kSource, kWhole>(rows[0], column, width);
    if (present > 1) {
      const __m512i second = load_halves<kSource, kWhole>(rows[1], column, width);
      pair = _mm512_or_si512(pair, _mm512_slli_epi32(second, 16));
    }
    return _mm512_castsi512_ps(pair);
  }

  static void store_units(Unit* units, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(units), round(v));
  }
  static void store_paired_rows(Unit* units, Vec first, Vec second) {
    const __m512i low = _mm512_cvtepu16_epi32(round(first));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(round(second)), 16);
    _mm512_storeu_si512(units, _mm512_or_si512(low, high));
  }

  static float element(const Unit* units, int64_t which) {
    uint16_t half;
    std::memcpy(&half, reinterpret_cast<const char*>(units) + 2 * which, sizeof half);
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // The elements of v whose factor in the pair is 0 are 0: 0 * (infinity or NaN) would be NaN.
  static Vec zero_where_zero(const Unit* factors, Vec v) {
    uint32_t bits;
    std::memcpy(&bits, factors, sizeof bits);
    const uint32_t keep = (bits & 0x7fff ? 0xffffu : 0u) | (bits & 0x7fff0000 ? 0xffff0000u : 0u);
    const __m512i kept = _mm512_set1_epi32(static_cast<int>(keep));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), kept));
  }

  static Flag no_flag() { return 0; }
  static Flag flag_nonfinite(Flag flag, Vec v) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    return flag | _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_castps_si512(v), exponent),
                                          exponent);
  }
  static bool is_set(Flag flag) { return flag != 0; }

 private:
  static __m256i round(Vec v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
};

}  // namespace
}  // namespace attn::cpu
