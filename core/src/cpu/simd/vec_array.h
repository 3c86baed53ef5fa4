// Portable vectors in GCC's and Clang's vector extension, as wide as the target allows.
// They are the scalar instruction set's float32, and every instruction set's float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

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
  // A subnormal counts steps of 2^-24; by way of a subnormal float it might be flushed to 0.
  const uint32_t bits = magnitude < 0x400u
                            ? bits_from_float(static_cast<float>(magnitude) * 0x1p-24f)
                            : (magnitude << 13) + 0x38000000u;
  return float_from_bits(sign | bits);
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

// A vector of the compiler's own, so that arithmetic needs no intrinsics.
template <class T, int kLanes>
struct VecArray {
  using Real = T;
  static constexpr int kWidth = kLanes;
  // 2 x 4 accumulators, 4 columns and 1 broadcast fill 13 of SSE's 16 registers.
  static constexpr int kTileRows = 2;
  static constexpr int kTileVectors = 4;

  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  typedef T Vec __attribute__((vector_size(kLanes * sizeof(T))));
  typedef Bits Mask __attribute__((vector_size(kLanes * sizeof(T))));

  static Vec load(const T* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, Vec v) { std::memcpy(p, &v, sizeof v); }
  static Vec set1(T x) { return x - Vec{}; }
  static Vec iota() {
    return each([](int l) { return static_cast<T>(l); });
  }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec sub(Vec a, Vec b) { return a - b; }
  static Vec mul(Vec a, Vec b) { return a * b; }
  static Vec div(Vec a, Vec b) { return a / b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  // b wins if either is NaN, as in x86's max.
  static Vec max(Vec a, Vec b) { return a > b ? a : b; }
  static Mask less(Vec a, Vec b) { return reinterpret_cast<Mask>(a < b); }
  static Mask equal(Vec a, Vec b) { return reinterpret_cast<Mask>(a == b); }
  static Vec select(Mask m, Vec yes, Vec no) { return m != Mask{} ? yes : no; }

  static Vec exp2(Vec x) {
    if constexpr (sizeof(T) == 8) {
      return each([&](int l) { return std::exp2(x[l]); });
    } else {
      x = x < set1(kExp2Lowest) ? set1(kExp2Lowest) : x;
      // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
      const Vec rounder = set1(12582912.0f);
      const Vec rounded = x + rounder;
      const Vec r = x - (rounded - rounder);
      Vec p = set1(kExp2C5) * r + kExp2C4;
      p = p * r + kExp2C3;
      p = p * r + kExp2C2;
      p = p * r + kExp2C1;
      p = p * r + 1.0f;
      const Mask n = reinterpret_cast<Mask>(rounded) - reinterpret_cast<Mask>(rounder);
      return p * reinterpret_cast<Vec>((n + 127u) << 23);
    }
  }

  static bool any(Mask m) {
    Bits all = 0;
    for (int l = 0; l < kLanes; ++l) all |= m[l];
    return all != 0;
  }
  static T reduce_add(Vec v) {
    T sum = v[0];
    for (int l = 1; l < kLanes; ++l) sum += v[l];
    return sum;
  }
  static T reduce_max(Vec v) {
    T most = v[0];
    for (int l = 1; l < kLanes; ++l) most = most > v[l] ? most : v[l];
    return most;
  }
  static Vec load_bfloat16(const uint16_t* p) {
    return each([&](int l) { return static_cast<T>(float_from_bfloat16(p[l])); });
  }
  static Vec load_float16(const uint16_t* p) {
    return each([&](int l) { return static_cast<T>(float_from_float16(p[l])); });
  }
  static void store_bfloat16(uint16_t* p, Vec v) {
    for (int l = 0; l < kLanes; ++l) p[l] = bfloat16_from_float(static_cast<float>(v[l]));
  }
  static void store_float16(uint16_t* p, Vec v) {
    for (int l = 0; l < kLanes; ++l) p[l] = float16_from_float(static_cast<float>(v[l]));
  }
  // Lane r is the sum of rows[r]'s lanes.
  static Vec sums_of_lanes(const Vec (&rows)[kLanes]) {
    return each([&](int r) { return reduce_add(rows[r]); });
  }
  static void transpose(Vec (&rows)[kLanes]) {
    T square[kLanes][kLanes];
    for (int r = 0; r < kLanes; ++r) {
      for (int c = 0; c < kLanes; ++c) square[c][r] = rows[r][c];
    }
    std::memcpy(rows, square, sizeof square);
  }

 private:
  template <class F>
  static Vec each(F&& f) {
    T lanes[kLanes];
    for (int l = 0; l < kLanes; ++l) lanes[l] = f(l);
    return load(lanes);
  }
};

}  // namespace
}  // namespace attn::cpu
