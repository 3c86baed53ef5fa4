// Operands of two bfloat16 elements per 32-bit unit, multiplied by vdpbf16ps (AVX512-BF16).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/kernels/operand-inl.h"
#include "cpu/simd/vec_avx512.h"

namespace attn::cpu {
namespace {

// AVX-512 that rounds to bfloat16 by an instruction.
struct VecAvx512BFloat16 : VecAvx512 {
  static void store_bfloat16(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
};

struct BFloat16Pairs {
  using S = VecAvx512BFloat16;
  using Unit = float;  // only a 32-bit container; never computed with as a float
  using Vec = __m512;
  using Flag = __m512i;  // the largest magnitudes, as bits
  using ByVectors = BFloat16Pairs;
  struct Pair {
    Vec first, second;
  };
  struct Registers {};
  static constexpr int kDepth = 2;
  static constexpr int kTileRows = S::kTileRows;
  static constexpr DType kDType = DType::kBFloat16;

  static Vec dot(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  template <DType kSource, bool kWhole = false>
  static Vec load_units(const char* row, int64_t unit, int64_t width) {
    const int64_t index = 2 * unit;
    const int64_t left = kWhole ? 32 : width - index;
    if constexpr (kSource == DType::kBFloat16) {
      if (left >= 32) return _mm512_loadu_ps(row + 2 * index);
      return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first_lanes(left), row + 2 * index));
    } else {
      const __m256i low = load_halves<kSource, kWhole>(row, index, width);
      if (left <= 16) return _mm512_castsi512_ps(_mm512_zextsi256_si512(low));
      const __m256i high = load_halves<kSource, kWhole>(row, index + 16, width);
      return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
    }
  }

  // `present` rows (1 or 2) exist; a missing second one counts as 0.
  template <DType kSource>
  static Vec load_columns(const char* const* rows, int64_t present, int64_t column, int64_t width) {
    const __m256i first = load_halves<kSource, false>(rows[0], column, width);
    if (present < 2) return _mm512_castsi512_ps(_mm512_cvtepu16_epi32(first));
    return interleave(first, load_halves<kSource, false>(rows[1], column, width));
  }

  // The units of 32 whole columns of two rows of bfloat16, in two vectors.
  static Pair load_column_pairs(const char* const* rows, int64_t column) {
    // Unpacking takes the low halves of 128-bit lanes, then the high ones.
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const __m512i a = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(rows[0] + 2 * column));
    const __m512i b = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(rows[1] + 2 * column));
    return {_mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b)),
            _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b))};
  }

  static void store_units(Unit* units, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(units), round(v));
  }
  static void store_units(Unit* units, Vec first, Vec second) {
    S::store(units, reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(second, first)));
  }
  static void store_paired_rows(Unit* units, Vec first, Vec second) {
    S::store(units, interleave(round(first), round(second)));
  }

  static Vec exp2(Vec x) { return S::rough_exp2(x); }
  // What rounding to bfloat16 takes from v.
  static Vec residual(Vec v) {
    const __m512i rounded = _mm512_slli_epi32(_mm512_cvtepu16_epi32(round(v)), 16);
    return S::sub(v, _mm512_castsi512_ps(rounded));
  }

  // The elements of v whose factor in the pair is 0 are 0: 0 * (infinity or NaN) would be NaN.
  static Vec zero_where_zero(const Unit* factors, Vec v) {
    uint32_t bits;
    std::memcpy(&bits, factors, sizeof bits);
    const uint32_t keep = (bits & 0x7fff ? 0xffffu : 0u) | (bits & 0x7fff0000 ? 0xffff0000u : 0u);
    const __m512i kept = _mm512_set1_epi32(static_cast<int>(keep));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), kept));
  }

  static Flag no_flag() { return _mm512_setzero_si512(); }
  static Flag flag_nonfinite(Flag flag, Vec v) { return _mm512_max_epu16(flag, magnitudes(v)); }
  static bool is_set(Flag flag) {
    return _mm512_cmpge_epu16_mask(flag, _mm512_set1_epi16(kInfinityBits)) != 0;
  }

  // The elements of v that are finite, and 0; those that are not, and 0.
  static Vec finite_elements(Vec v) {
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(~nonfinite(v), _mm512_castps_si512(v)));
  }
  static Vec nonfinite_elements(Vec v) {
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(nonfinite(v), _mm512_castps_si512(v)));
  }

 private:
  static constexpr int16_t kInfinityBits = 0x7f80;

  static __m512i magnitudes(Vec v) {
    return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi16(0x7fff));
  }
  static __mmask32 nonfinite(Vec v) {
    return _mm512_cmpge_epu16_mask(magnitudes(v), _mm512_set1_epi16(kInfinityBits));
  }

  static __mmask32 first_lanes(int64_t n) { return static_cast<__mmask32>((uint64_t{1} << n) - 1); }

  // Elements [column, column + 16) of a row of `width`, zero-padded.
  template <DType kSource, bool kWhole>
  static __m256i load_halves(const char* row, int64_t column, int64_t width) {
    if constexpr (kSource == DType::kBFloat16) {
      const int64_t left = kWhole ? 16 : width - column;
      const char* from = row + 2 * column;
      if (left >= 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      return _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_lanes(left)), from);
    } else {
      return round(load_elements<S, kSource, kWhole>(row, column, width));
    }
  }

  static Vec interleave(__m256i low, __m256i high) {
    const __m512i shifted = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low), shifted));
  }

  static __m256i round(Vec v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
};

}  // namespace
}  // namespace attn::cpu
