// The parts of the mask that weigh single scores: the bias and dropout, one query row at a time.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/kernels/operand-inl.h"
#include "cpu/simd/vec_array.h"
#include "problem/philox.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

template <class Real>
inline Real read_score(const char* at, DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return static_cast<Real>(*reinterpret_cast<const double*>(at));
    case DType::kFloat32: return static_cast<Real>(*reinterpret_cast<const float*>(at));
    case DType::kBFloat16:
      return static_cast<Real>(float_from_bfloat16(*reinterpret_cast<const uint16_t*>(at)));
    case DType::kFloat16:
      return static_cast<Real>(float_from_float16(*reinterpret_cast<const uint16_t*>(at)));
    case DType::kBool: return *at ? Real(0) : -std::numeric_limits<Real>::infinity();
  }
  return Real(0);
}

template <class S, DType kSource>
void load_contiguous_scores(typename S::Real* to, const char* row, int64_t n,
                            typename S::Real factor) {
  for (int64_t c = 0; c < n; c += S::kWidth) {
    S::store(to + c, S::mul(load_elements<S, kSource>(row, c, n), S::set1(factor)));
  }
}

// Writes factor * bias[b, h, i, begin + c] for c in [0, n); a keep-mask gives 0 or -infinity.
// `to` has room for n rounded up to whole vectors.
template <class S>
void load_bias_row(typename S::Real* to, const Scores& bias, int64_t b, int64_t h, int64_t i,
                   int64_t begin, int64_t n, typename S::Real factor) {
  using Real = typename S::Real;
  const int64_t step = bias.stride_n * element_bytes(bias.dtype);
  const char* row = bias.row(b, h, i) + begin * step;
  if (bias.stride_n == 1 && bias.dtype != DType::kBool) {
    switch (bias.dtype) {
      case DType::kBFloat16: return load_contiguous_scores<S, DType::kBFloat16>(to, row, n, factor);
      case DType::kFloat16: return load_contiguous_scores<S, DType::kFloat16>(to, row, n, factor);
      case DType::kFloat64: return load_contiguous_scores<S, DType::kFloat64>(to, row, n, factor);
      default: return load_contiguous_scores<S, DType::kFloat32>(to, row, n, factor);
    }
  }
  if (bias.dtype == DType::kBool) {
    const Real excluded = -std::numeric_limits<Real>::infinity();
    for (int64_t c = 0; c < n; ++c) to[c] = row[c * step] ? Real(0) : excluded;
    return;
  }
  for (int64_t c = 0; c < n; ++c) to[c] = factor * read_score<Real>(row + c * step, bias.dtype);
}

// Writes what dropout multiplies the probabilities (b, h, i, begin + c), c in [0, n), with: 0 or
// 1 / (1 - p). `begin` is a multiple of 4; `to` has room for n rounded up to 64.
template <class Real>
void load_dropout_row(Real* to, const Dropout& dropout, int64_t b, int64_t h, int64_t i,
                      int64_t begin, int64_t n) {
  constexpr int kCounters = 16;
  const Real keep = static_cast<Real>(dropout.keep_scale);
  for (int64_t c = 0; c < n; c += 4 * kCounters) {
    // A plain loop over counters, so that the compiler runs one counter per vector lane.
    uint32_t draws[4][kCounters];
    for (int l = 0; l < kCounters; ++l) {
      const PhiloxWords words = philox4x32_10(
          static_cast<uint32_t>(b), static_cast<uint32_t>(h), static_cast<uint32_t>(i),
          static_cast<uint32_t>((begin + c) / 4 + l), dropout.key[0], dropout.key[1]);
      for (int w = 0; w < 4; ++w) draws[w][l] = words.w[w];
    }
    for (int l = 0; l < kCounters; ++l) {
      for (int w = 0; w < 4; ++w) {
        to[c + 4 * l + w] = draws[w][l] < dropout.threshold ? Real(0) : keep;
      }
    }
  }
}

}  // namespace
}  // namespace attn::cpu
