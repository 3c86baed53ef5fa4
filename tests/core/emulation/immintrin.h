// Stands in for the compiler's <immintrin.h>: AVX-512, AVX512-BF16 and AMX on a CPU with AVX2 only.
// SIMDe emulates what it can; below is what its version 0.7.4 lacks or rounds differently.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "tiles.h"

namespace emulation {
namespace {

template <class Element, int kCount>
struct Lanes {
  Element lane[kCount];

  Lanes() = default;
  template <class Register>
  explicit Lanes(Register r) {
    static_assert(sizeof r == sizeof lane);
    std::memcpy(lane, &r, sizeof r);
  }
  template <class Register>
  operator Register() const {
    static_assert(sizeof(Register) == sizeof lane);
    Register r;
    std::memcpy(&r, lane, sizeof r);
    return r;
  }
};

using Floats = Lanes<float, 16>;
using Words = Lanes<uint32_t, 16>;
using Halves = Lanes<uint16_t, 16>;
using Pairs = Lanes<uint16_t, 32>;

// Each 32-bit lane multiplies two pairs; the odd product is added first, both by fused additions.
inline __m512 dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  Floats result(sum);
  const Pairs x(a), y(b);
  for (int l = 0; l < 16; ++l) {
    for (int i : {2 * l + 1, 2 * l}) {
      result.lane[l] = flushed(std::fma(float_of_high_half(x.lane[i]),
                                        float_of_high_half(y.lane[i]), flushed(result.lane[l])));
    }
  }
  return result;
}

inline __m256bh cvtneps_pbh(__m512 v) {
  const Floats x(v);
  Halves result;
  for (int l = 0; l < 16; ++l) {
    const float value = flushed(x.lane[l]);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    result.lane[l] = static_cast<uint16_t>(
        std::isnan(value) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  return result;
}

// The lower half comes from the second operand.
inline __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
  const Halves lower(cvtneps_pbh(low)), upper(cvtneps_pbh(high));
  Pairs result;
  std::memcpy(result.lane, lower.lane, sizeof lower.lane);
  std::memcpy(result.lane + 16, upper.lane, sizeof upper.lane);
  return result;
}

// a * 2^floor(b), rounded once.
inline __m512 scalef_ps(__m512 a, __m512 b) {
  const Floats x(a), n(b);
  Floats result;
  for (int l = 0; l < 16; ++l) {
    const float power = std::floor(std::fmin(std::fmax(n.lane[l], -1e3f), 1e3f));
    result.lane[l] =
        std::isnan(n.lane[l]) ? n.lane[l] : std::ldexp(x.lane[l], static_cast<int>(power));
  }
  return result;
}

// What is left of a number above the whole one below it: 0 of an infinity.
inline __m512 fraction_ps(__m512 v) {
  Floats x(v);
  for (float& lane : x.lane) lane = std::isinf(lane) ? 0.0f : lane - std::floor(lane);
  return x;
}

inline __m512 cvtph_ps(__m256i halves) {
  Floats result;
  _mm256_storeu_ps(result.lane, _mm256_cvtph_ps(_mm256_castsi256_si128(halves)));
  _mm256_storeu_ps(result.lane + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1)));
  return result;
}

template <int kRounding>
inline __m256i cvtps_ph(__m512 v) {
  const Floats x(v);
  const __m128i low = _mm256_cvtps_ph(_mm256_loadu_ps(x.lane), kRounding);
  const __m128i high = _mm256_cvtps_ph(_mm256_loadu_ps(x.lane + 8), kRounding);
  return _mm256_set_m128i(high, low);
}

// Lanes that are not kept are not read.
template <int kCount, class Register>
inline Register maskz_loadu_epi16(uint32_t keep, const void* from) {
  Lanes<uint16_t, kCount> result{};
  for (int l = 0; l < kCount; ++l) {
    if (keep >> l & 1) std::memcpy(&result.lane[l], static_cast<const char*>(from) + 2 * l, 2);
  }
  return result;
}

inline __m512i zextsi256_si512(__m256i v) {
  Pairs result{};
  std::memcpy(result.lane, &v, sizeof v);
  return result;
}

inline __m512i cvtepu16_epi32(__m256i v) {
  const Halves x(v);
  Words result;
  for (int l = 0; l < 16; ++l) result.lane[l] = x.lane[l];
  return result;
}

inline __m256i cvtepi32_epi16(__m512i v) {
  const Words x(v);
  Halves result;
  for (int l = 0; l < 16; ++l) result.lane[l] = static_cast<uint16_t>(x.lane[l]);
  return result;
}

// The compiler reduces by halves: lane l with lane l + 8, then l + 4, l + 2, l + 1.
template <class F>
inline float reduce_by_halves(__m512 v, F&& join) {
  Floats x(v);
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) x.lane[l] = join(x.lane[l + half], x.lane[l]);
  }
  return x.lane[0];
}

inline float reduce_add_ps(__m512 v) {
  return reduce_by_halves(v, [](float a, float b) { return a + b; });
}

inline float reduce_max_ps(__m512 v) {
  return reduce_by_halves(v, [](float a, float b) { return a > b ? a : b; });
}

}  // namespace
}  // namespace emulation

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) emulation::tile_loadconfig(shapes)
#define _tile_release()
#define _tile_loadd(tile, from, stride) emulation::tile_loadd(tile, from, stride)
#define _tile_stored(tile, to, stride) emulation::tile_stored(tile, to, stride)
#define _tile_zero(tile) emulation::tile_zero(tile)
#define _tile_dpbf16ps(sums, a, b) emulation::tile_dpbf16ps(sums, a, b)
#undef _mm512_dpbf16_ps
#undef _mm512_scalef_ps
#undef _mm512_cvtps_ph
#undef _mm512_shuffle_f32x4
#define _mm512_dpbf16_ps(sum, a, b) emulation::dpbf16_ps(sum, a, b)
#define _mm512_cvtneps_pbh(v) emulation::cvtneps_pbh(v)
#define _mm512_cvtne2ps_pbh(high, low) emulation::cvtne2ps_pbh(high, low)
#define _mm512_scalef_ps(a, b) emulation::scalef_ps(a, b)
#define _mm512_reduce_ps(v, floor) emulation::fraction_ps(v)
#define _mm512_cvtph_ps(halves) emulation::cvtph_ps(halves)
#define _mm512_cvtps_ph(v, rounding) emulation::cvtps_ph<(rounding) & ~_MM_FROUND_NO_EXC>(v)
#define _mm512_maskz_loadu_epi16(keep, from) emulation::maskz_loadu_epi16<32, __m512i>(keep, from)
#define _mm256_maskz_loadu_epi16(keep, from) emulation::maskz_loadu_epi16<16, __m256i>(keep, from)
#define _mm512_zextsi256_si512(v) emulation::zextsi256_si512(v)
#define _mm512_cvtepu16_epi32(v) emulation::cvtepu16_epi32(v)
#define _mm512_cvtepi32_epi16(v) emulation::cvtepi32_epi16(v)
#define _mm512_shuffle_f32x4(a, b, lanes) simde_mm512_shuffle_f32x4(a, b, lanes)
#define _mm512_reduce_add_ps(v) emulation::reduce_add_ps(v)
#define _mm512_reduce_max_ps(v) emulation::reduce_max_ps(v)
