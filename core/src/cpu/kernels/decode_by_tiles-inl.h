// The two products of decoding by an instruction set's tile registers.
#pragma once

#include <cstdint>

#include "cpu/kernels/decode_products-inl.h"
#include "cpu/kernels/multiply-inl.h"

namespace attn::cpu {
namespace {

// Keys scored at once.
template <class Op>
constexpr int64_t kTilesOfKeys = 2 * Op::kTileRows;

// Slots to prefetch in of score_keys_by_tiles, with its keys' conversion, and add_packed_values.
constexpr int64_t slots_of_scores_by_tiles(int64_t keys) { return 2 * keys; }
template <class Op>
constexpr int64_t slots_of_packed_values(int64_t keys, int64_t width) {
  return (width + kPanel<Op> - 1) / kPanel<Op> * units_of<Op>(keys) +
         2 * (width / (2 * Op::kTileColumns)) * kTilePairSlots;
}

// Scores of `rows` query rows against n keys, at most kTilesOfKeys, each of `key_units` units. The
// keys are the left operand, so that they need no turning; the queries, packed as the right one,
// have `depth` units. Scores are written by whole vectors.
template <class Op>
void score_keys_by_tiles(typename Op::S::Real* scores, int64_t score_stride,
                         const typename Op::Unit* queries, int64_t rows,
                         const typename Op::Unit* keys, int64_t key_units, int64_t n, int64_t depth,
                         typename Op::Registers& registers, RowPrefetcher& prefetcher) {
  using S = typename Op::S;
  alignas(64) typename S::Real by_key[kTilesOfKeys<Op> * S::kWidth];
  Product<Op> product;
  product.a = keys;
  product.a_stride = key_units;
  product.b = queries;
  product.b_depth = product.depth = depth;
  product.c = by_key;
  product.c_stride = S::kWidth;
  product.rows = n;
  product.columns = product.b_columns = rows;
  multiply(product, registers);
  for (int64_t k = 0; k < n; k += S::kWidth) {
    typename S::Vec square[S::kWidth];
    for (int64_t i = 0; i < S::kWidth; ++i) {
      prefetcher.issue();
      square[i] = k + i < n ? S::load(by_key + (k + i) * S::kWidth) : S::set1(0);
    }
    S::transpose(square);
    for (int64_t r = 0; r < rows; ++r) S::store(scores + r * score_stride + k, square[r]);
  }
}

// Adds the product of rows of probabilities (A of `product`) and n rows of values to the rows' sums
// (its C). `residuals` are what rounding took from A. `packed` gets the values.
template <class Op, DType kSource>
void add_packed_values(Product<Op> product, const typename Op::Unit* residuals,
                       typename Op::Unit* packed, const char* const* values, int64_t n,
                       int64_t width, typename Op::Registers& registers,
                       RowPrefetcher& prefetcher) {
  product.is_finite = pack_stacked_from<Op, kSource>(packed, values, {0, n}, n, width,
                                                     [&](auto...) { prefetcher.issue(); });
  product.b = packed;
  product.b_depth = product.depth = units_of<Op>(n);
  product.columns = product.b_columns = width;
  product.accumulate = true;
  product.skip_zeros = true;
  product.prefetcher = &prefetcher;
  multiply(product, registers);
  product.a = residuals;
  product.only_finite = true;
  multiply(product, registers);
}

}  // namespace
}  // namespace attn::cpu
