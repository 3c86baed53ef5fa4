// The two products of decoding, on keys and values read where they lie.
#pragma once

#include <cstdint>

#include "cpu/kernels/pack-inl.h"

namespace attn::cpu {
namespace {

// Scores of one query row against kWidth keys; those at or past n repeat the last one.
template <class Op, DType kSource>
typename Op::S::Vec dot_keys(const typename Op::Unit* query, const char* const* keys, int64_t n,
                             int64_t width) {
  using S = typename Op::S;
  constexpr int W = S::kWidth;
  const char* rows[W];
#pragma GCC unroll 16
  for (int k = 0; k < W; ++k) rows[k] = keys[k < n ? k : n - 1];
  typename S::Vec sum[W];
#pragma GCC unroll 16
  for (int k = 0; k < W; ++k) sum[k] = S::set1(0);
  const int64_t whole = width / Op::kDepth / W * W;
  for (int64_t u = 0; u < whole; u += W) {
    const auto q = S::load(query + u);
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      sum[k] = Op::dot(sum[k], q, Op::template load_units<kSource, true>(rows[k], u, width));
    }
  }
  if (whole < units_of<Op>(width)) {
    const auto q = S::load(query + whole);
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      sum[k] = Op::dot(sum[k], q, Op::template load_units<kSource>(rows[k], whole, width));
    }
  }
  S::transpose(sum);
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
#pragma GCC unroll 8
    for (int k = 0; k < W; k += 2 * step) sum[k] = S::add(sum[k], sum[k + step]);
  }
  return sum[0];
}

// out[r, column ...] += P V for kRows rows and kVectors vectors of columns; kWhole: all of them
// within `width`.
template <class Op, DType kSource, int kRows, int kVectors, bool kWhole>
void accumulate_values(typename Op::S::Real* out, int64_t out_stride,
                       const typename Op::Unit* probabilities, int64_t probability_stride,
                       const char* const* values, int64_t n, int64_t column, int64_t width) {
  using S = typename Op::S;
  typename S::Vec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = S::load(out + r * out_stride + column + v * S::kWidth);
    }
  }
  for (int64_t d = 0; d < units_of<Op>(n); ++d) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const auto value = Op::template load_columns<kSource, kWhole>(
          values + d * Op::kDepth, n - d * Op::kDepth, column + v * S::kWidth, width);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r][v] = Op::dot(sum[r][v], S::set1(probabilities[r * probability_stride + d]), value);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      S::store(out + r * out_stride + column + v * S::kWidth, sum[r][v]);
    }
  }
}

}  // namespace
}  // namespace attn::cpu
