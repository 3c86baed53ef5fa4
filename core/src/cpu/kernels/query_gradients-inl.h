// The rows of dQ that a block of keys makes for a tile of queries, and their sum over the blocks.
//
// Blocks add in the order of their keys, so the sum is the same for any number of threads. The
// gradient of positions' query features lies beside dQ in the same rows.
#pragma once

#include <cstdint>

#include "cpu/kernels/backward_sums-inl.h"
#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/upcoming_rows-inl.h"

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
  // Where the gradient of positions' query features is added to; that of the query if they are it.
  Real* position_row(int64_t r) const {
    return row(r) + (p_.positions.of_queries.is_content ? 0 : t_.widths.key_columns);
  }

  // Adds the tile's rows, if there are any, when all earlier blocks have; the last one of those
  // that see the tile stores the sum.
  void add(const QueryTile<Op>& tile, int64_t first_block, int64_t last_block) {
    const bool is_first = block_ == first_block, adds = !is_empty_;
    if (is_first && !adds) clear(rows_, tile.n * t_.query_columns);
    if (first_block == last_block) return store_rows(tile);
    const int64_t number = t_.first_tile(p_, tile.sequence) + tile.first / t_.tile_rows;
    Turn& turn = sum_.turns[tile.key_head * t_.tiles + number];
    if (!is_first) turn.wait_for(block_);
    for (int64_t r = 0; (is_first || adds) && r < tile.n; ++r) {
      each_gradient([&](const Gradient& of) {
        if (r + kRowsAhead < tile.n) {
          prefetch_row_to_write(reinterpret_cast<const char*>(sum_row(of, tile, r + kRowsAhead)),
                                of.columns * static_cast<int64_t>(sizeof(Real)));
        }
        Real* sum = sum_row(of, tile, r);
        const Real* more = row(r) + of.column;
        for (int64_t c = 0; c < of.columns; ++c) sum[c] = is_first ? more[c] : sum[c] + more[c];
      });
    }
    if (block_ == last_block) {
      store(tile, [&](const Gradient& of, int64_t r) { return sum_row(of, tile, r); });
    }
    turn.end(block_);
  }

  // The rows of the sum that `add` is going to add the tile to.
  void add_sum_to(UpcomingQueries& upcoming, const QueryTile<Op>& tile) const {
    if (sum_.queries) {
      upcoming.add(sum_.queries, t_.widths.key_columns, {tile.first, tile.first + tile.n});
    }
  }

  void store_zeros(const QueryTile<Op>& tile) {
    clear(rows_, tile.n * t_.query_columns);
    store_rows(tile);
  }

 private:
  static constexpr int64_t kRowsAhead = 8;  // from the row added to the one prefetched

  // One of those that lie beside each other in a row.
  struct Gradient {
    const HeadRows& gradient;
    const HeadRows& sum;
    int64_t column, columns;  // of the row
    int64_t width;
  };

  template <class F>
  void each_gradient(F&& visit) const {
    const int64_t columns = t_.widths.key_columns;
    if (p_.grad_query) visit(Gradient{p_.grad_query, sum_.queries, 0, columns, p_.K});
    if (p_.grad_position_query) {
      visit(Gradient{p_.grad_position_query, sum_.positions, columns, t_.query_columns - columns,
                     p_.positions.of_queries.width});
    }
  }

  Real* sum_row(const Gradient& of, const QueryTile<Op>& tile, int64_t r) const {
    return reinterpret_cast<Real*>(query_row_of(of.sum, tile.sequence, tile.query(p_, r)));
  }

  void store_rows(const QueryTile<Op>& tile) {
    store(tile, [&](const Gradient& of, int64_t r) { return row(r) + of.column; });
  }

  template <class F>
  void store(const QueryTile<Op>& tile, F&& row_of) {
    const Real scale = static_cast<Real>(p_.scale);
    each_gradient([&](const Gradient& of) {
      for (int64_t r = 0; r < tile.n; ++r) {
        char* to = query_row_of(of.gradient, tile.sequence, tile.query(p_, r));
        store_row<S>(to, of.gradient.dtype, row_of(of, r), of.width, scale);
      }
    });
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
