// Portable vectors: fixed-size arrays that the compiler vectorises as far as the target allows.
// They are the scalar instruction set's float32, and every instruction set's float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/simd/exp2_polynomial.h"

namespace attn::cpu {
namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_bfloat16(uint16_t half) { return float_from_bits(uint32_t{half} << 16); }

// Rounds to nearest even; NaN stays a quiet NaN.
inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float float_from_float16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude << 13));
  // Scaling by 2^112 rebiases the exponent and normalises subnormals in one exact multiplication.
  const float scaled = float_from_bits(magnitude << 13) * 0x1p112f;
  return float_from_bits(sign | bits_from_float(scaled));
}

// Rounds to nearest even; overflow gives infinity; NaN stays a quiet NaN.
inline uint16_t float16_from_float(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Adding 0.5 leaves the subnormal's integer, correctly rounded, in the low mantissa bits.
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

inline double exp2_of(double x) { return std::exp2(x); }

inline float exp2_of(float x) {
  x = x < kExp2Lowest ? kExp2Lowest : x;
  x = x > kExp2Highest ? kExp2Highest : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
  constexpr float kRounder = 12582912.0f;
  const float rounded = x + kRounder;
  const float r = x - (rounded - kRounder);
  float p = kExp2C5;
  p = p * r + kExp2C4;
  p = p * r + kExp2C3;
  p = p * r + kExp2C2;
  p = p * r + kExp2C1;
  p = p * r + 1.0f;
  return p * float_from_bits((bits_from_float(rounded) - bits_from_float(kRounder) + 127u) << 23);
}

template <class T, int kLanes>
struct VecArray {
  using Real = T;
  static constexpr int kWidth = kLanes;
  static constexpr int kTileRows = 2;
  static constexpr int kTileVectors = 2;

  struct Vec {
    T lane[kLanes];
  };
  struct Mask {
    bool lane[kLanes];
  };

  template <class F>
  static Vec each(F&& f) {
    Vec result;
    for (int l = 0; l < kLanes; ++l) result.lane[l] = f(l);
    return result;
  }

  static Vec load(const T* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, const Vec& v) { std::memcpy(p, &v, sizeof v); }
  static Vec set1(T x) { return each([&](int) { return x; }); }
  static Vec iota() { return each([](int l) { return static_cast<T>(l); }); }
  static Vec add(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] + b.lane[l]; });
  }
  static Vec sub(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] - b.lane[l]; });
  }
  static Vec mul(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] * b.lane[l]; });
  }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int l) { return a.lane[l] * b.lane[l] + c.lane[l]; });
  }
  // b wins if either is NaN, as in x86's max.
  static Vec max(const Vec& a, const Vec& b) {
    return each([&](int l) { return a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]; });
  }
  static Vec exp2(const Vec& x) {
    return each([&](int l) { return exp2_of(x.lane[l]); });
  }
  static Mask less(const Vec& a, const Vec& b) {
    Mask m;
    for (int l = 0; l < kLanes; ++l) m.lane[l] = a.lane[l] < b.lane[l];
    return m;
  }
  static Mask equal(const Vec& a, const Vec& b) {
    Mask m;
    for (int l = 0; l < kLanes; ++l) m.lane[l] = a.lane[l] == b.lane[l];
    return m;
  }
  static Vec select(const Mask& m, const Vec& yes, const Vec& no) {
    return each([&](int l) { return m.lane[l] ? yes.lane[l] : no.lane[l]; });
  }
  static T reduce_add(const Vec& v) {
    T sum = v.lane[0];
    for (int l = 1; l < kLanes; ++l) sum += v.lane[l];
    return sum;
  }
  static T reduce_max(const Vec& v) {
    T most = v.lane[0];
    for (int l = 1; l < kLanes; ++l) most = most > v.lane[l] ? most : v.lane[l];
    return most;
  }
  static Vec load_bfloat16(const uint16_t* p) {
    return each([&](int l) { return static_cast<T>(float_from_bfloat16(p[l])); });
  }
  static Vec load_float16(const uint16_t* p) {
    return each([&](int l) { return static_cast<T>(float_from_float16(p[l])); });
  }
  static void store_bfloat16(uint16_t* p, const Vec& v) {
    for (int l = 0; l < kLanes; ++l) p[l] = bfloat16_from_float(static_cast<float>(v.lane[l]));
  }
  static void store_float16(uint16_t* p, const Vec& v) {
    for (int l = 0; l < kLanes; ++l) p[l] = float16_from_float(static_cast<float>(v.lane[l]));
  }
  static void transpose(Vec (&rows)[kLanes]) {
    for (int r = 0; r < kLanes; ++r) {
      for (int c = 0; c < r; ++c) {
        const T above = rows[c].lane[r];
        rows[c].lane[r] = rows[r].lane[c];
        rows[r].lane[c] = above;
      }
    }
  }
};

}  // namespace
}  // namespace attn::cpu
