// The rows of dQ that a block of keys makes for a tile of queries, and their sum over the blocks.
//
// Blocks add in the order of their keys, so the sum is the same for any number of threads. The
// gradient of positions' query features lies beside dQ in the same rows.
#pragma once

#include <sched.h>

#include <cstdint>

#include "cpu/kernels/backward_sums-inl.h"

namespace attn::cpu {
namespace {

template <class Op>
class QueryGradients {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  // `rows` are [kTileQueries, query_columns].
  QueryGradients(const BackwardProblem& p, const BackwardTiling<Op>& t, Real* rows,
                 const GradQuerySum<Op>& sum, int64_t block)
      : p_(p), t_(t), rows_(rows), sum_(sum), block_(block) {}

  bool wanted() const { return wants_query_rows(p_); }

  // Whether nothing is in the rows yet: a product sets them, or adds.
  bool is_empty() const { return is_empty_; }
  void set_empty(bool is_empty) { is_empty_ = is_empty; }

  int64_t stride() const { return t_.query_columns; }
  Real* row(int64_t r) const { return rows_ + r * t_.query_columns; }
  Real* position_row(int64_t r) const { return row(r) + t_.widths.key_columns; }

  // Adds the tile's rows, if there are any, when all earlier blocks have; the last one of those
  // that see the tile stores the sum.
  void add(const QueryTile<Op>& tile, int64_t first_block, int64_t last_block) {
    const bool is_first = block_ == first_block, adds = !is_empty_;
    if (is_first && !adds) clear(tile);
    if (first_block == last_block) {
      return store(tile, [&](int64_t r) { return row(r); });
    }
    const int64_t number = t_.first_tile(p_, tile.sequence) + tile.first / t_.tile_rows;
    int32_t* turn = sum_.turns + tile.key_head * t_.tiles + number;
    while (!is_first && __atomic_load_n(turn, __ATOMIC_ACQUIRE) != block_) sched_yield();
    for (int64_t r = 0; (is_first || adds) && r < tile.n; ++r) {
      Real* sum = sum_row(tile, r);
      const Real* more = row(r);
      for (int64_t c = 0; c < t_.query_columns; ++c) {
        sum[c] = is_first ? more[c] : sum[c] + more[c];
      }
    }
    if (block_ == last_block) store(tile, [&](int64_t r) { return sum_row(tile, r); });
    __atomic_store_n(turn, static_cast<int32_t>(block_ + 1), __ATOMIC_RELEASE);
  }

  void store_zeros(const QueryTile<Op>& tile) {
    clear(tile);
    store(tile, [&](int64_t r) { return row(r); });
  }

 private:
  Real* sum_row(const QueryTile<Op>& tile, int64_t r) const {
    const Sequence& sequence = tile.sequence;
    const QueryRow at = tile.query(p_, r);
    const int64_t place = (sequence.b * p_.Hq + at.h) * p_.Mq + sequence.q_begin + at.i;
    return sum_.sum + place * t_.query_columns;
  }

  template <class F>
  void store(const QueryTile<Op>& tile, F&& row_of) {
    const Real scale = static_cast<Real>(p_.scale);
    for (int64_t r = 0; r < tile.n; ++r) {
      const QueryRow at = tile.query(p_, r);
      if (p_.grad_query) {
        store_row<S>(query_row_of(p_.grad_query, tile.sequence, at), p_.grad_query.dtype, row_of(r),
                     p_.K, scale);
      }
      if (p_.grad_position_query) {
        store_row<S>(query_row_of(p_.grad_position_query, tile.sequence, at),
                     p_.grad_position_query.dtype, row_of(r) + t_.widths.key_columns,
                     p_.positions.of_queries.width, scale);
      }
    }
  }

  void clear(const QueryTile<Op>& tile) {
    for (int64_t c = 0; c < tile.n * t_.query_columns; ++c) rows_[c] = 0;
  }

  const BackwardProblem& p_;
  const BackwardTiling<Op>& t_;
  Real* rows_;
  const GradQuerySum<Op>& sum_;
  const int64_t block_;
  bool is_empty_ = true;
};

}  // namespace
}  // namespace attn::cpu
