// What the backward passes share: probabilities and score gradients of one tile, recomputed.
//
// A tile is transposed, keys by query rows, so that vectors run along query rows: then P^T and
// dS^T are the left operands of dV = P^T dO and dK = dS^T Q as they stand.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <cstdint>

#include "cpu/kernels/blocks-inl.h"
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

  void load(const Problem& p, const GradientWidths<Op>& w, const char** rows,
            const Sequence& sequence, int64_t key_head) {
    key_rows(rows, p.key, sequence, key_head, begin, n);
    pack_rows<Op>(keys, w.key_units, rows, p.key.dtype, n, p.K);
    key_rows(rows, p.value, sequence, key_head, begin, n);
    pack_rows<Op>(values, w.value_units, rows, p.value.dtype, n, p.Kv);
  }
};

template <class S>
typename S::Real dot_rows(const char* x, const char* y, DType dtype, int64_t n) {
  typename S::Real result = 0;
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

// rowsum(dO * O) - dLSE of one query row.
template <class S>
typename S::Real row_delta(const BackwardProblem& p, const Sequence& sequence, QueryRow at,
                           const char* grad_out_row) {
  using Real = typename S::Real;
  const Real sum = dot_rows<S>(query_row_of(p.out, sequence, at), grad_out_row, p.out.dtype, p.Kv);
  return p.grad_lse ? sum - row_scalar<Real>(p.grad_lse, sequence, at) : sum;
}

// What one query row adds to its head's dSink: dS of a key whose value is 0.
template <class S>
typename S::Real grad_sink_of_row(const BackwardProblem& p, const Sequence& sequence, QueryRow at) {
  using Real = typename S::Real;
  const Real lse = row_scalar<Real>(p.lse, sequence, at);
  if (lse == -kInfinity<Real>) return 0;
  const Real sink = read_score<Real>(p.sink.at(at.h), p.sink.dtype);
  Real probability[S::kWidth];
  S::store(probability, S::exp2(S::set1((sink - lse) * static_cast<Real>(kLog2E))));
  return -probability[0] * row_delta<S>(p, sequence, at, query_row_of(p.grad_out, sequence, at));
}

// A tile of query rows: Q and dO as right operands, and what softmax's gradient needs per row.
template <class Op>
struct QueryTile {
  using S = typename Op::S;
  using Real = typename S::Real;
  using Unit = typename Op::Unit;

  Sequence sequence;
  int64_t key_head = 0, first = 0, n = 0;
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
  void place(const Problem& p, const Sequence& sequence_, int64_t key_head_, int64_t first_,
             int64_t end) {
    sequence = sequence_, key_head = key_head_, first = first_;
    n = smaller(kTileQueries, end - first);
    seen = {sequence.Mkv, 0};
    for (int64_t r = 0; r < n; ++r) {
      ranges[r] = sequence.keys_of(query(p, r).i);
      if (ranges[r].begin >= ranges[r].end) continue;
      seen = {smaller(seen.begin, ranges[r].begin), larger(seen.end, ranges[r].end)};
    }
    if (seen.begin >= seen.end) seen = {0, 0};
  }

  QueryRow query(const Problem& p, int64_t r) const {
    return query_row(p, sequence, key_head, first + r);
  }

  // Whether any row may see any of the keys: by the bands' union, and by the blocks.
  bool sees(const Problem& p, int64_t begin, int64_t end) const {
    if (seen.begin >= end || seen.end <= begin) return false;
    bool any = !p.blocks;
    for (int64_t r = 0; r < n && !any;) {
      const QueryRow at = query(p, r);
      any = sees_blocks(p.blocks, at.h, at.i, {begin, end});
      r += smaller(p.blocks.size - at.i % p.blocks.size, sequence.Mq - at.i);
    }
    return any;
  }

  // What computing P and dS takes.
  void load(const BackwardProblem& p, const char** rows) {
    query_rows(rows, p, p.query, sequence, key_head, first, n);
    pack_transposed<Op>(queries, rows, p.query.dtype, n, p.K);
    query_rows(rows, p, p.grad_out, sequence, key_head, first, n);
    pack_transposed<Op>(grad_out, rows, p.grad_out.dtype, n, p.Kv);
    for (int64_t r = 0; r < n; ++r) load_row(p, r, rows[r]);
    for (int64_t r = n; r < kTileQueries; ++r) {
      lse[r] = kInfinity<Real>;
      delta[r] = 0;
    }
  }

  // What multiplying with P^T and dS^T takes.
  void load_stacked(const BackwardProblem& p, const char** rows) {
    query_rows(rows, p, p.query, sequence, key_head, first, n);
    queries_finite = pack_stacked<Op>(queries_stacked, rows, p.query.dtype, n, p.K);
    query_rows(rows, p, p.grad_out, sequence, key_head, first, n);
    grad_out_finite = pack_stacked<Op>(grad_out_stacked, rows, p.grad_out.dtype, n, p.Kv);
  }

 private:
  void load_row(const BackwardProblem& p, int64_t r, const char* grad_out_row) {
    const QueryRow at = query(p, r);
    const Real natural = row_scalar<Real>(p.lse, sequence, at);
    lse[r] = natural == -kInfinity<Real> ? kInfinity<Real> : natural * static_cast<Real>(kLog2E);
    delta[r] = row_delta<S>(p, sequence, at, grad_out_row);
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
    const bool biased = has_score_bias(p) || p.blocks;
    // A row of biases may be written up to two vectors further than it is long.
    by_row_ = biased || p.dropout.enabled
                  ? scratch.take<Real>(kTileQueries * kTileKeys + 2 * S::kWidth)
                  : nullptr;
    bias_ = biased ? scratch.take<Real>(kTileKeys * kTileQueries) : nullptr;
    dropout_ = p.dropout.enabled ? scratch.take<Real>(kTileKeys * kTileQueries) : nullptr;
  }

  // Keys [offset, offset + n) of the block. kAsUnits: leave P and dS as operands, with dS that of
  // the scaled scores; else as Reals, with dS that of the scores after their cap.
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
    const Factors factors{static_cast<Real>(p.scale * kLog2E),
                          static_cast<Real>(p.softcap * kLog2E)};
    if (masked || bias_ || p.softcap > 0) {
      differentiate<kAsUnits, true>(tile, n, factors);
    } else {
      differentiate<kAsUnits, false>(tile, n, factors);
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
        const QueryRow at = tile.query(p, r);
        load_bias_row_with_blocks<S>(by_row_ + r * kTileKeys, p,
                                     {tile.sequence, at.h, at.i, begin, n});
      }
      transpose_tile(bias_, tile.n, n);
    }
    if (dropout_) {
      for (int64_t r = 0; r < tile.n; ++r) {
        const QueryRow at = tile.query(p, r);
        load_dropout_row(by_row_ + r * kTileKeys, p.dropout, {tile.sequence, at.h, at.i, begin, n});
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

  // To base 2.
  struct Factors {
    Real scale;
    Real softcap;  // 0: none
  };

  // dS = P * (dP * dropout - delta), over kDepth keys at a time. kMasked: whatever the plain case
  // lacks may be there.
  template <bool kAsUnits, bool kMasked>
  void differentiate(const QueryTile<Op>& tile, int64_t n, Factors factors) {
    constexpr int D = Op::kDepth;
    const Arrays arrays{probabilities, grad_scores, tile.lse, tile.delta,
                        begin_,        end_,        bias_,    dropout_};
    const int64_t rows = tile.n;
    Unit* by_depth = grad_scores_by_depth;
    for (int64_t k = 0; k < n; k += D) {
      for (int64_t r = 0; r < rows; r += S::kWidth) {
        typename S::Vec grad[D];
        for (int d = 0; d < D; ++d) {
          grad[d] = k + d < n ? differentiate_vector<kAsUnits, kMasked>(arrays, k + d, r, factors)
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
                                                                     int64_t r, Factors factors) {
    const int64_t at = key * kTileQueries + r;
    auto x = S::mul(S::load(a.probabilities + at), S::set1(factors.scale));
    auto cap_slope = S::set1(1);
    if (kMasked && factors.softcap > 0) {
      const auto t = tanh<S>(S::div(x, S::set1(factors.softcap)));
      x = S::mul(t, S::set1(factors.softcap));
      if (kAsUnits) cap_slope = S::sub(cap_slope, S::mul(t, t));
    }
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
      grad = S::mul(grad, cap_slope);
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
