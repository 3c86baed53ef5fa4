// How a GPU calculates, for those that stand in for one.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

namespace gpu {

// By hand: without instructions for it, compilers call a slow function.
inline float from_half(uint16_t bits) {
  const uint32_t sign = uint32_t{bits} >> 15 << 31, rest = (uint32_t{bits} & 0x7fff) << 13;
  const bool is_finite = (bits & 0x7c00) != 0x7c00;
  const float size =
      is_finite ? std::bit_cast<float>(rest) * 0x1p112f : std::bit_cast<float>(rest | 0x7f800000);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(size) | sign);
}
inline float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// To the nearest, ties to even.
inline uint16_t to_half(float x) {
  const auto sign = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (x != x) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  uint32_t bits = std::bit_cast<uint32_t>(size + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  if (size >= 0x1p-14f) {
    bits = std::bit_cast<uint32_t>(size);
    bits = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
  }
  return static_cast<uint16_t>(sign | bits);
}
inline uint16_t to_bfloat16(float x) {
  if (x != x) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// To the nearest TF32 number, ties away from zero.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool is_finite = (bits & 0x7f800000) != 0x7f800000;
  return is_finite ? (bits + 0x1000) & 0xffffe000 : bits;
}
// Matrix instructions ignore the 13 low bits of what should be TF32 numbers.
inline float from_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000); }

// ex2.approx.ftz. As far off as it may be, so that nothing is built on an exact result.
inline float exp2_approximate(float x) {
  const float exact = std::exp2(x < -FLT_MAX || x >= -126.0f || x != x ? x : -INFINITY);
  const float off = std::nextafter(std::nextafter(exact, 0.0f), 0.0f);
  return exact == 0.0f || std::isinf(exact) || x == 0.0f ? exact : off;
}

// `exact` without the bits that a float has no room for.
inline float towards_zero(double exact) {
  constexpr uint64_t kKept = ~uint64_t{0} << 29;
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<uint64_t>(exact) & kKept));
}

// D += A B, as a matrix instruction does it. Sums are cut off, as GPUs do it, not rounded to the
// nearest: what is added up in D loses as often as it is added to, always on the same side.
// Source: Fasi et al. 2021, 10.7717/peerj-cs.330.
// Most of a test's time is spent here: with vectors.
template <int K>
[[gnu::optimize("O3")]] void multiply_accumulate(const float (&a)[16][K], const float (&b)[K][8],
                                                 float (&d)[16][8]) {
  for (int row = 0; row < 16; ++row) {
    double sums[8] = {};
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) {
        sums[column] += static_cast<double>(a[row][k]) * b[k][column];
      }
    }
    for (int column = 0; column < 8; ++column) {
      d[row][column] = towards_zero(d[row][column] + sums[column]);
    }
  }
}

}  // namespace gpu
