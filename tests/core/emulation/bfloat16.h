// How the bfloat16 instructions read and round their numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulation {
namespace {

// What the bfloat16 instructions do to subnormals, both read and produced.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

inline float float_of_high_half(uint32_t half) {
  const uint32_t bits = half << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return flushed(x);
}

}  // namespace
}  // namespace emulation
