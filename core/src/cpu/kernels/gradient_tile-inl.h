// What the backward passes share: probabilities and score gradients of one tile, recomputed.
//
// A tile is transposed, keys by query rows, so that vectors run along query rows: then P^T and
// dS^T are the left operands of dV = P^T dO and dK = dS^T Q as they stand.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <cstdint>

#include "cpu/kernels/multiply-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scores-inl.h"
#include "cpu/kernels/softmax-inl.h"

namespace attn::cpu {
namespace {

constexpr int64_t kTileQueries = 128;  // query rows of a tile
constexpr int64_t kTileKeys = 128;     // keys of a tile; both are whole panels

template <class Op>
struct GradientWidths {
  int64_t key_units;      // units of a packed query or key row
  int64_t value_units;    // units of a packed value or output row
  int64_t key_columns;    // K in whole vectors
  int64_t value_columns;  // Kv in whole vectors

  explicit GradientWidths(const Problem& p)
      : key_units(round_up(units_of<Op>(p.K), Op::S::kWidth)),
        value_units(round_up(units_of<Op>(p.Kv), Op::S::kWidth)),
        key_columns(round_up(p.K, Op::S::kWidth)),
        value_columns(round_up(p.Kv, Op::S::kWidth)) {}
};

// A block of keys and values as left operands, loaded once for many query tiles.
template <class Op>
struct KeyBlock {
  int64_t begin = 0;
  int64_t n = 0;
  typename Op::Unit* keys;    // [n, key_units]
  typename Op::Unit* values;  // [n, value_units]

  KeyBlock(Scratch& scratch, const GradientWidths<Op>& w, int64_t capacity)
      : keys(scratch.take<typename Op::Unit>(capacity * w.key_units)),
        values(scratch.take<typename Op::Unit>(capacity * w.value_units)) {}

  void load(const Problem& p, const GradientWidths<Op>& w, const char** rows, int64_t b,
            int64_t key_head) {
    key_rows(rows, p.key, b, key_head, begin, n);
    pack_rows<Op>(keys, w.key_units, rows, p.key.dtype, n, p.K);
    key_rows(rows, p.value, b, key_head, begin, n);
    pack_rows<Op>(values, w.value_units, rows, p.value.dtype, n, p.Kv);
  }
};

// A tile of query rows: Q and dO as right operands, and what softmax's gradient needs per row.
template <class Op>
struct QueryTile {
  using S = typename Op::S;
  using Real = typename S::Real;
  using Unit = typename Op::Unit;

  int64_t b = 0, key_head = 0, first = 0, n = 0;
  KeyRange seen;           // the union of the rows' ranges
  KeyRange* ranges;        // [kTileQueries]
  Unit* queries;           // columns are query rows
  Unit* grad_out;          // columns are query rows
  Unit* queries_stacked;   // depth is query rows
  Unit* grad_out_stacked;  // depth is query rows
  bool queries_finite = true, grad_out_finite = true;
  Real* lse;    // [kTileQueries], in base 2; +infinity where nothing is seen: P is 0 there
  Real* delta;  // [kTileQueries]: rowsum(dO * O) - dLSE

  QueryTile(Scratch& scratch, const GradientWidths<Op>& w) {
    ranges = scratch.take<KeyRange>(kTileQueries);
    queries = scratch.take<Unit>(panel_units<Op>(w.key_units, kTileQueries));
    grad_out = scratch.take<Unit>(panel_units<Op>(w.value_units, kTileQueries));
    queries_stacked =
        scratch.take<Unit>(panel_units<Op>(units_of<Op>(kTileQueries), w.key_columns));
    grad_out_stacked =
        scratch.take<Unit>(panel_units<Op>(units_of<Op>(kTileQueries), w.value_columns));
    lse = scratch.take<Real>(kTileQueries);
    delta = scratch.take<Real>(kTileQueries);
  }

  // Chooses up to kTileQueries of the rows [first, end) of a key head and finds what they see.
  void place(const Problem& p, int64_t b_, int64_t key_head_, int64_t first_, int64_t end) {
    b = b_, key_head = key_head_, first = first_;
    n = smaller(kTileQueries, end - first);
    seen = {p.Mkv, 0};
    for (int64_t r = 0; r < n; ++r) {
      ranges[r] = p.keys_of(query_row(p, key_head, first + r).i);
      if (ranges[r].begin >= ranges[r].end) continue;
      seen = {smaller(seen.begin, ranges[r].begin), larger(seen.end, ranges[r].end)};
    }
    if (seen.begin >= seen.end) seen = {0, 0};
  }

  // What computing P and dS takes.
  void load(const BackwardProblem& p, const char** rows) {
    query_rows(rows, p, p.query, b, key_head, first, n);
    pack_transposed<Op>(queries, rows, p.query.dtype, n, p.K);
    query_rows(rows, p, p.grad_out, b, key_head, first, n);
    pack_transposed<Op>(grad_out, rows, p.grad_out.dtype, n, p.Kv);
    for (int64_t r = 0; r < n; ++r) load_row(p, r, rows[r]);
    for (int64_t r = n; r < kTileQueries; ++r) {
      lse[r] = kInfinity<Real>;
      delta[r] = 0;
    }
  }

  // What multiplying with P^T and dS^T takes.
  void load_stacked(const BackwardProblem& p, const char** rows) {
    query_rows(rows, p, p.query, b, key_head, first, n);
    queries_finite = pack_stacked<Op>(queries_stacked, rows, p.query.dtype, n, p.K);
    query_rows(rows, p, p.grad_out, b, key_head, first, n);
    grad_out_finite = pack_stacked<Op>(grad_out_stacked, rows, p.grad_out.dtype, n, p.Kv);
  }

 private:
  void load_row(const BackwardProblem& p, int64_t r, const char* grad_out_row) {
    const QueryRow at = query_row(p, key_head, first + r);
    const Real natural = p.lse.template at<Real>(b, at.h, at.i);
    lse[r] = natural == -kInfinity<Real> ? kInfinity<Real> : natural * static_cast<Real>(kLog2E);
    delta[r] = dot_rows(p.out.row(b, at.i, at.h), grad_out_row, p.out.dtype, p.Kv);
    if (p.grad_lse) delta[r] -= p.grad_lse.template at<Real>(b, at.h, at.i);
  }

  static Real dot_rows(const char* x, const char* y, DType dtype, int64_t n) {
    Real result = 0;
    with_source<SingleOperand<S>>(dtype, [&]<DType kSource>() {
      auto sum = S::set1(0);
      for (int64_t c = 0; c < n; c += S::kWidth) {
        sum = S::fma(load_elements<S, kSource>(x, c, n), load_elements<S, kSource>(y, c, n), sum);
      }
      result = S::reduce_add(sum);
      return true;
    });
    return result;
  }
};

// P^T and dS^T of one query tile against up to kTileKeys keys of a block.
template <class Op>
class GradientTile {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;
  using Unit = typename Op::Unit;

  Real* probabilities;  // [kTileKeys, kTileQueries]; after compute: dropped out, as left operand
  Real* grad_scores;    // likewise dS, before the scale
  Unit* grad_scores_by_depth;  // dS with units along keys: [units of keys, kTileQueries]

  GradientTile(Scratch& scratch, const Problem& p) {
    probabilities = scratch.take<Real>(kTileKeys * kTileQueries);
    grad_scores = scratch.take<Real>(kTileKeys * kTileQueries);
    grad_scores_by_depth = Op::kDepth == 1 ? reinterpret_cast<Unit*>(grad_scores)
                                           : scratch.take<Unit>(kTileKeys / 2 * kTileQueries);
    begin_ = scratch.take<Real>(kTileQueries);
    end_ = scratch.take<Real>(kTileQueries);
    by_row_ = p.bias || p.dropout.enabled ? scratch.take<Real>(kTileQueries * kTileKeys) : nullptr;
    bias_ = p.bias ? scratch.take<Real>(kTileKeys * kTileQueries) : nullptr;
    dropout_ = p.dropout.enabled ? scratch.take<Real>(kTileKeys * kTileQueries) : nullptr;
  }

  // Keys [offset, offset + n) of the block. kAsUnits: leave P and dS as operands, else as Reals.
  template <bool kAsUnits>
  void compute(const Problem& p, const GradientWidths<Op>& w, const KeyBlock<Op>& block,
               const QueryTile<Op>& tile, int64_t offset, int64_t n) {
    Product<Op> product;
    product.c_stride = kTileQueries;
    product.rows = n;
    product.columns = product.b_columns = tile.n;
    product.a = block.keys + offset * w.key_units;
    product.a_stride = w.key_units;
    product.b = tile.queries;
    product.b_depth = product.depth = units_of<Op>(p.K);
    product.c = probabilities;
    multiply(product);
    product.a = block.values + offset * w.value_units;
    product.a_stride = w.value_units;
    product.b = tile.grad_out;
    product.b_depth = product.depth = units_of<Op>(p.Kv);
    product.c = grad_scores;
    multiply(product);

    const int64_t begin = block.begin + offset;
    const bool masked = load_ranges(tile, begin, n);
    load_weights(p, tile, begin, n);
    const Real scale = static_cast<Real>(p.scale * kLog2E);
    if (masked || bias_) {
      differentiate<kAsUnits, true>(tile, n, scale);
    } else {
      differentiate<kAsUnits, false>(tile, n, scale);
    }
  }

 private:
  // Returns whether the band excludes any key of the tile from any row.
  bool load_ranges(const QueryTile<Op>& tile, int64_t begin, int64_t n) {
    bool masked = false;
    for (int64_t r = 0; r < kTileQueries; ++r) {
      const bool exists = r < tile.n;
      const int64_t from = exists ? larger(tile.ranges[r].begin - begin, 0) : 0;
      const int64_t to = exists ? smaller(tile.ranges[r].end - begin, n) : 0;
      masked |= exists && (from > 0 || to < n);
      begin_[r] = static_cast<Real>(from);
      end_[r] = static_cast<Real>(larger(to, 0));
    }
    return masked;
  }

  void load_weights(const Problem& p, const QueryTile<Op>& tile, int64_t begin, int64_t n) {
    if (bias_) {
      for (int64_t r = 0; r < tile.n; ++r) {
        const QueryRow at = query_row(p, tile.key_head, tile.first + r);
        load_bias_row<S>(by_row_ + r * kTileKeys, p.bias, tile.b, at.h, at.i, begin, n,
                         static_cast<Real>(kLog2E));
      }
      transpose_tile(bias_, tile.n, n);
    }
    if (dropout_) {
      for (int64_t r = 0; r < tile.n; ++r) {
        const QueryRow at = query_row(p, tile.key_head, tile.first + r);
        load_dropout_row(by_row_ + r * kTileKeys, p.dropout, tile.b, at.h, at.i, begin, n);
      }
      // The row that an odd last one is paired with must not multiply by what lies there.
      if (tile.n % Op::kDepth != 0) {
        for (int64_t c = 0; c < n; ++c) by_row_[tile.n * kTileKeys + c] = 0;
      }
      transpose_tile(dropout_, tile.n, n);
    }
  }

  void transpose_tile(Real* to, int64_t rows, int64_t columns) {
    constexpr int W = S::kWidth;
    for (int64_t r = 0; r < rows; r += W) {
      for (int64_t c = 0; c < columns; c += W) {
        typename S::Vec square[W];
        for (int l = 0; l < W; ++l) square[l] = S::load(by_row_ + (r + l) * kTileKeys + c);
        S::transpose(square);
        for (int l = 0; l < W; ++l) S::store(to + (c + l) * kTileQueries + r, square[l]);
      }
    }
  }

  // What the loop over a tile reads and writes; a copy, since its stores might otherwise change
  // the members, for all the compiler knows.
  struct Arrays {
    Real* probabilities;
    Real* grad_scores;
    const Real* lse;
    const Real* delta;
    const Real* begin;
    const Real* end;
    const Real* bias;
    const Real* dropout;
  };

  // dS = P * (dP * dropout - delta), over kDepth keys at a time.
  template <bool kAsUnits, bool kMasked>
  void differentiate(const QueryTile<Op>& tile, int64_t n, Real scale) {
    constexpr int D = Op::kDepth;
    const Arrays arrays{probabilities, grad_scores, tile.lse, tile.delta,
                        begin_,        end_,        bias_,    dropout_};
    const int64_t rows = tile.n;
    Unit* by_depth = grad_scores_by_depth;
    for (int64_t k = 0; k < n; k += D) {
      for (int64_t r = 0; r < rows; r += S::kWidth) {
        typename S::Vec grad[D];
        for (int d = 0; d < D; ++d) {
          grad[d] = k + d < n ? differentiate_vector<kAsUnits, kMasked>(arrays, k + d, r, scale)
                              : S::set1(0);
        }
        if (kAsUnits) {
          Op::store_paired_rows(by_depth + k / D * kTileQueries + r, grad[0], grad[D - 1]);
        }
      }
    }
  }

  template <bool kAsUnits, bool kMasked>
  [[gnu::always_inline]] static typename S::Vec differentiate_vector(const Arrays& a, int64_t key,
                                                                     int64_t r, Real scale) {
    const int64_t at = key * kTileQueries + r;
    auto x = S::mul(S::load(a.probabilities + at), S::set1(scale));
    if (kMasked && a.bias) x = S::add(x, S::load(a.bias + at));
    auto p = S::exp2(S::sub(x, S::load(a.lse + r)));
    auto grad = S::load(a.grad_scores + at);
    auto dropped = p;
    if (a.dropout) {
      const auto factor = S::load(a.dropout + at);
      dropped = S::mul(p, factor);
      grad = S::mul(grad, factor);
    }
    grad = S::mul(p, S::sub(grad, S::load(a.delta + r)));
    if (kMasked) {
      // Selected rather than multiplied: an excluded key may have scored NaN.
      const auto zero = S::set1(0);
      const auto column = S::set1(static_cast<Real>(key));
      const auto before = S::less(column, S::load(a.begin + r));
      const auto within = S::less(column, S::load(a.end + r));
      dropped = S::select(within, S::select(before, zero, dropped), zero);
      grad = S::select(within, S::select(before, zero, grad), zero);
      if (a.bias) {
        const auto excluded = S::equal(S::load(a.bias + at), S::set1(-kInfinity<Real>));
        dropped = S::select(excluded, zero, dropped);
        grad = S::select(excluded, zero, grad);
      }
    }
    if (kAsUnits) {
      Op::store_units(a.probabilities + key * kTileQueries + r / Op::kDepth, dropped);
      Op::store_units(a.grad_scores + key * kTileQueries + r / Op::kDepth, grad);
    } else {
      S::store(a.grad_scores + at, grad);
    }
    return grad;
  }

  Real* begin_;    // [kTileQueries]: the band's first key of each row, from the tile's first
  Real* end_;      // [kTileQueries]
  Real* by_row_;   // [kTileQueries, kTileKeys]: bias or dropout as read
  Real* bias_;     // [kTileKeys, kTileQueries], in base 2; null without bias
  Real* dropout_;  // likewise the factors; null without dropout
};

}  // namespace
}  // namespace attn::cpu
