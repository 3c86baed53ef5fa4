// The two products of decoding, on the rows of a few keys or values, wherever they lie.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/pack-inl.h"
#include "cpu/kernels/prefetch-inl.h"

namespace attn::cpu {
namespace {

// Calls f<0>() ... f<kEnd - 1>(): indices known at compile time keep arrays of vectors in
// registers.
template <int kEnd, int kBegin = 0, class F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  if constexpr (kBegin < kEnd) {
    f.template operator()<kBegin>();
    unrolled<kEnd, kBegin + 1>(f);
  }
}

// Converts n rows of `width` elements to n rows of `stride` units, zero-padded to whole vectors.
// There is a slot to prefetch in before each.
template <class Op, DType kSource>
void convert_rows(typename Op::Unit* to, int64_t stride, const char* const* rows, int64_t n,
                  int64_t width, RowPrefetcher& prefetcher) {
  using S = typename Op::S;
  const int64_t whole = width / (S::kWidth * Op::kDepth) * S::kWidth;
  for (int64_t k = 0; k < n; ++k) {
    prefetcher.issue();
    for (int64_t u = 0; u < whole; u += S::kWidth) {
      S::store(to + k * stride + u, Op::template load_units<kSource, true>(rows[k], u, width));
    }
    if (whole < units_of<Op>(width)) {
      S::store(to + k * stride + whole, Op::template load_units<kSource>(rows[k], whole, width));
    }
  }
}

// Slots taken at once: issuing for each alone costs more than such short bursts do.
constexpr int64_t kSlotsAtOnce = 4;

// The query rows at once with which score_keys is fastest.
template <class S>
constexpr int kScoreRows = S::kWidth >= 16  ? 4
                           : S::kWidth >= 8 ? 2
                                            : 1;

// Scores of kRows query rows against kWidth / kRows keys, a vector of partial sums each; keys at or
// past n, which may be below 1, repeat the last one. A score's bits do not depend on kRows. Rows
// are whole vectors.
template <class Op, DType kSource, int kRows>
void score_keys(typename Op::S::Real* scores, int64_t score_stride,
                const typename Op::Unit* queries, int64_t query_stride, const char* const* keys,
                int64_t n, int64_t width, RowPrefetcher& prefetcher) {
  using S = typename Op::S;
  using Vec = typename S::Vec;
  constexpr int kKeys = S::kWidth / kRows;
  const char* rows[kKeys];
  unrolled<kKeys>([&]<int k>() { rows[k] = keys[k < n ? k : n - 1]; });
  Vec sum[S::kWidth];
  unrolled<S::kWidth>([&]<int i>() { sum[i] = S::set1(0); });
  for (int64_t u = 0; u < units_of<Op>(width); u += S::kWidth) {
    Vec key[kKeys];
    unrolled<kKeys>(
        [&]<int k>() { key[k] = Op::template load_units<kSource, true>(rows[k], u, width); });
    if (u % (kSlotsAtOnce * S::kWidth) == 0) prefetcher.issue(kSlotsAtOnce);
    // Or GCC loads each key again for every row.
    asm volatile("" ::: "memory");
    unrolled<kRows>([&]<int r>() {
      const Vec query = S::load(queries + r * query_stride + u);
      unrolled<kKeys>(
          [&]<int k>() { sum[r * kKeys + k] = Op::dot(sum[r * kKeys + k], query, key[k]); });
    });
  }
  typename S::Real totals[S::kWidth];
  S::store(totals, S::sums_of_lanes(sum));
  unrolled<kRows>([&]<int r>() {
    std::memcpy(scores + r * score_stride, totals + r * kKeys, kKeys * sizeof(*totals));
  });
}

// The same scores, to the bit, of one query row each of kHeads heads against kWidth / kHeads keys,
// whose rows in `keys` are those of the first head: memory is read in its own order.
template <class Op, DType kSource, int kHeads>
void score_heads(typename Op::S::Real* scores, int64_t score_stride,
                 const typename Op::Unit* queries, int64_t query_stride, const char* const* keys,
                 int64_t head_bytes, int64_t width) {
  using S = typename Op::S;
  typename S::Vec sum[S::kWidth];
  unrolled<S::kWidth>([&]<int i>() {
    const char* row = keys[i / kHeads] + i % kHeads * head_bytes;
    const typename Op::Unit* query = queries + i % kHeads * query_stride;
    sum[i] = S::set1(0);
    for (int64_t u = 0; u < units_of<Op>(width); u += S::kWidth) {
      const auto key = Op::template load_units<kSource, true>(row, u, width);
      sum[i] = Op::dot(sum[i], S::load(query + u), key);
    }
  });
  typename S::Real totals[S::kWidth];
  S::store(totals, S::sums_of_lanes(sum));
  unrolled<S::kWidth>([&]<int i>() { scores[i % kHeads * score_stride + i / kHeads] = totals[i]; });
}

// out[r, column ...] += P V for kRows rows and kVectors vectors of columns, all within `width`.
template <class S, DType kSource, int kRows, int kVectors>
void accumulate_values(typename S::Real* out, int64_t out_stride,
                       const typename S::Real* probabilities, int64_t probability_stride,
                       const char* const* values, int64_t n, int64_t column, int64_t width,
                       RowPrefetcher& prefetcher) {
  typename S::Vec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = S::load(out + r * out_stride + column + v * S::kWidth);
    }
  }
  for (int64_t k = 0; k < n; ++k) {
    if (k % kSlotsAtOnce == 0) prefetcher.issue(kSlotsAtOnce * kVectors);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const auto value = load_elements<S, kSource, true>(values[k], column + v * S::kWidth, width);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sum[r][v] = S::fma(S::set1(probabilities[r * probability_stride + k]), value, sum[r][v]);
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
