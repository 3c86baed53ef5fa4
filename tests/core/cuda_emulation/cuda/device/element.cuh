// core/src/cuda/device/element.cuh for the emulated GPU.
#pragma once

#include <bit>

#include "cuda/device/platform.cuh"

namespace attn::cuda {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
// By hand: without instructions for it, compilers call a slow function.
inline float to_float(Half x) {
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31, rest = (uint32_t{x.bits} & 0x7fff) << 13;
  const bool is_finite = (x.bits & 0x7c00) != 0x7c00;
  const float size =
      is_finite ? std::bit_cast<float>(rest) * 0x1p112f : std::bit_cast<float>(rest | 0x7f800000);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(size) | sign);
}
inline float to_float(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

template <class Element>
Element from_float(float x) = delete;
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Half from_float<Half>(float x) {
  return {std::bit_cast<uint16_t>(static_cast<_Float16>(x))};
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  if (x != x) return {0x7fff};
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class Element>
uint32_t pack(float low, float high) {
  return from_float<Element>(low).bits | uint32_t{from_float<Element>(high).bits} << 16;
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool is_finite = (bits & 0x7f800000) != 0x7f800000;
  return is_finite ? (bits + 0x1000) & 0xffffe000 : bits;
}

}  // namespace attn::cuda
