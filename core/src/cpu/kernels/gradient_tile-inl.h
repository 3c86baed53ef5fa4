// What the backward passes share: probabilities and score gradients of one tile, recomputed.
//
// A tile is transposed, keys by query rows, so that vectors run along query rows: then P^T and
// dS^T are the left operands of dV = P^T dO and dK = dS^T Q as they stand.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <cstdint>

#include "cpu/kernels/multiply-inl.h"
#include "cpu/kernels/query_tile-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "cpu/kernels/tile_positions-inl.h"
#include "cpu/kernels/transpose-inl.h"
#include "cpu/kernels/upcoming_rows-inl.h"

namespace attn::cpu {
namespace {

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
  Real* residuals;             // what rounding takes from dS; valid if has_residuals()
  Real* grad_biases;           // as Reals, dS of the scores after their cap; null unless wanted
  typename Op::Registers registers;
  UpcomingQueries upcoming;  // prefetched by compute, some for every unit of keys

  GradientTile(Scratch& scratch, const Problem& p, bool wants_grad_biases)
      : positions_(scratch, p.positions) {
    probabilities = scratch.take<Real>(kTileKeys * kTileQueries);
    grad_scores = scratch.take<Real>(kTileKeys * kTileQueries);
    grad_scores_by_depth = Op::kDepth == 1 ? reinterpret_cast<Unit*>(grad_scores)
                                           : scratch.take<Unit>(kTileKeys / 2 * kTileQueries);
    residuals = Op::kDepth == 1 ? nullptr : scratch.take<Real>(kTileKeys * kTileQueries);
    begin_ = scratch.take<Real>(kTileQueries);
    end_ = scratch.take<Real>(kTileQueries);
    const bool is_grad_scores = Op::kDepth == 1 && p.softcap == 0;
    own_grad_biases_ = wants_grad_biases && !is_grad_scores
                           ? scratch.take<Real>(kTileKeys * kTileQueries)
                           : nullptr;
    grad_biases = wants_grad_biases && is_grad_scores ? grad_scores : own_grad_biases_;
    const bool biased = has_score_bias(p, static_cast<bool>(p.blocks)) || p.positions;
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
  void compute(const BackwardProblem& p, const GradientWidths<Op>& w, const KeyBlock<Op>& block,
               const QueryTile<Op>& tile, int64_t offset, int64_t n, bool excludes_blocks) {
    multiply_queries(p, w, block, tile, offset, n);
    Product<Op> product;
    product.c_stride = kTileQueries;
    product.rows = n;
    product.columns = product.b_columns = tile.n;
    product.a = block.values + offset * w.value_units;
    product.a_is_packed = true;
    product.a_stride = w.value_units;
    product.b = tile.grad_out;
    product.b_depth = product.depth = units_of<Op>(p.Kv);
    product.c = grad_scores;
    product.is_finite = tile.grad_out_finite;
    multiply(product, registers);

    const int64_t begin = block.begin + offset;
    const bool masked = load_ranges(tile, begin, n);
    load_bias(p, tile, begin, n, excludes_blocks);
    if (dropout_) load_dropout(p, tile, begin, n);
    const Factors factors(p);
    has_few_ = element_bytes(p.out.dtype) == 2 && sum_few_keys(p, tile, begin, n, factors);
    if (masked || biased_ || p.softcap > 0 || tile.has_large_lse) {
      differentiate<kAsUnits, true>(tile, n, factors);
    } else {
      differentiate<kAsUnits, false>(tile, n, factors);
    }
  }

  // Whether the dQ of some row needs `residuals` added.
  bool has_residuals() const { return Op::kDepth > 1 && has_few_; }

  // Whether a row that sees `seen` sees few keys, all of them among [begin, begin + n).
  static bool sees_few_of(const KeyRange& seen, int64_t begin, int64_t n) {
    return sees_few(seen) && seen.begin >= begin && seen.end <= begin + n;
  }

  // Lets the online softmax of each row see the block's keys: `total` is the sum of
  // 2^(score - maximum). Both are [kTileQueries].
  void add_to_softmax(const Problem& p, const GradientWidths<Op>& w, const KeyBlock<Op>& block,
                      const QueryTile<Op>& tile, Real* maximum, Real* total) {
    multiply_queries(p, w, block, tile, 0, block.n);
    load_ranges(tile, block.begin, block.n);
    load_bias(p, tile, block.begin, block.n, static_cast<bool>(p.blocks));
    const Arrays arrays = arrays_of(tile);
    const Factors factors(p);
    const auto excluded = S::set1(-kInfinity<Real>);
    for (int64_t r = 0; r < tile.n; r += S::kWidth) {
      const auto before = S::load(maximum + r);
      auto most = before;
      for (int64_t key = 0; key < block.n; ++key) {
        typename S::Vec slope;
        const auto x = exclude(arrays, key, r, score<true>(arrays, key, r, factors, slope));
        most = S::max(x, most);
        S::store(probabilities + key * kTileQueries + r, x);
      }
      // With nothing seen yet any finite reference serves.
      const auto reference = S::select(S::equal(most, excluded), S::set1(0), most);
      auto sum = S::mul(S::load(total + r), S::exp2(S::sub(before, reference)));
      for (int64_t key = 0; key < block.n; ++key) {
        const auto x = S::load(probabilities + key * kTileQueries + r);
        sum = S::add(sum, Op::exp2(S::sub(x, reference)));
      }
      S::store(maximum + r, most);
      S::store(total + r, sum);
    }
  }

 private:
  // The products of keys and queries take the place of the probabilities.
  void multiply_queries(const Problem& p, const GradientWidths<Op>& w, const KeyBlock<Op>& block,
                        const QueryTile<Op>& tile, int64_t offset, int64_t n) {
    Product<Op> product;
    product.c_stride = kTileQueries;
    product.rows = n;
    product.columns = product.b_columns = tile.n;
    product.a = block.keys + offset * w.key_units;
    product.a_is_packed = true;
    product.is_turned = true;  // the forward has queries for rows
    product.a_stride = w.key_units;
    product.b = tile.queries;
    product.b_depth = product.depth = units_of<Op>(p.K);
    product.c = probabilities;
    product.is_finite = tile.queries_finite;
    multiply(product, registers);
  }

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

  void load_bias(const Problem& p, const QueryTile<Op>& tile, int64_t begin, int64_t n,
                 bool excludes_blocks) {
    biased_ = has_score_bias(p, excludes_blocks) || p.positions;
    if (!biased_) return;
    for (int64_t r = 0; r < tile.n; ++r) {
      const QueryRow at = tile.query(p, r);
      load_bias_row_with_blocks<S>(by_row_ + r * kTileKeys, p,
                                   {tile.sequence, at.h, at.i, begin, n});
    }
    const KeyRange keys{begin, begin + n};
    if (p.positions.of_queries) positions_.add_scores_of_queries(by_row_, p, tile, keys);
    transpose_by_squares<S, kTileQueries, kTileKeys>(bias_, by_row_, tile.n, n);
    if (p.positions.of_keys) positions_.add_scores_of_keys(bias_, p, tile, keys);
  }

  void load_dropout(const Problem& p, const QueryTile<Op>& tile, int64_t begin, int64_t n) {
    for (int64_t r = 0; r < tile.n; ++r) {
      const QueryRow at = tile.query(p, r);
      load_dropout_row(by_row_ + r * kTileKeys, p.dropout, {tile.sequence, at.h, at.i, begin, n});
    }
    // An odd last row is paired with one more, which must not multiply by what happens to lie
    // there.
    if (tile.n % Op::kDepth != 0) {
      for (int64_t c = 0; c < n; ++c) by_row_[tile.n * kTileKeys + c] = 0;
    }
    transpose_by_squares<S, kTileQueries, kTileKeys>(dropout_, by_row_, tile.n, n);
  }

  // What the loop over a tile reads and writes; a copy, since its stores might otherwise change
  // the members, for all the compiler knows.
  struct Arrays {
    Real* probabilities;
    Real* grad_scores;
    Real* residuals;    // null: not wanted
    Real* grad_biases;  // null: not wanted beside grad_scores
    const Real* lse_maximum;
    const Real* lse_rest;  // null: 0
    const Real* delta;
    const Real* begin;
    const Real* end;
    const Real* bias;
    const Real* dropout;
  };

  Arrays arrays_of(const QueryTile<Op>& tile) const {
    return {probabilities,
            grad_scores,
            has_residuals() ? residuals : nullptr,
            own_grad_biases_,
            tile.lse_maximum,
            tile.has_large_lse ? tile.lse_rest : nullptr,
            tile.delta,
            begin_,
            end_,
            biased_ ? bias_ : nullptr,
            dropout_};
  }

  // To base 2.
  struct Factors {
    Real scale;
    Real softcap;  // 0: none

    explicit Factors(const Problem& p)
        : scale(static_cast<Real>(p.scale * kLog2E)),
          softcap(static_cast<Real>(p.softcap * kLog2E)) {}
  };

  // Sums the deltas of rows that see few keys, all of them in this tile, anew from P dP: that of dO
  // O has the rounding of a 16-bit output, which may be larger than what dP - delta leaves. Returns
  // whether there are such rows.
  bool sum_few_keys(const BackwardProblem& p, const QueryTile<Op>& tile, int64_t begin, int64_t n,
                    Factors factors) {
    const Arrays arrays = arrays_of(tile);
    bool any_of_tile = false;
    for (int64_t r = 0; r < tile.n; r += S::kWidth) {
      const int64_t lanes = smaller(S::kWidth, tile.n - r);
      bool any = false;
      for (int64_t l = 0; l < lanes; ++l) any |= sees_few_of(tile.ranges[r + l], begin, n);
      if (!any) continue;
      any_of_tile = true;
      typename S::Vec dropped, cap_slope, sum = S::set1(0);
      for (int64_t key = 0; key < n; ++key) {
        sum = S::add(sum,
                     score_gradient<true>(arrays, key, r, factors, S::set1(0), dropped, cap_slope));
      }
      Real sums[S::kWidth];
      S::store(sums, sum);
      for (int64_t l = 0; l < lanes; ++l) {
        if (!sees_few_of(tile.ranges[r + l], begin, n)) continue;
        const QueryRow at = tile.query(p, r + l);
        const Real grad_lse =
            p.grad_lse ? row_scalar<Real>(p.grad_lse, tile.sequence, at) : Real(0);
        tile.delta[r + l] = sums[l] - grad_lse;
      }
    }
    return any_of_tile;
  }

  // dS = P * (dP * dropout - delta), over kDepth keys at a time. kMasked: there may be excluded
  // keys, biases, a cap or large lses.
  template <bool kAsUnits, bool kMasked>
  void differentiate(const QueryTile<Op>& tile, int64_t n, Factors factors) {
    constexpr int D = Op::kDepth;
    const Arrays arrays = arrays_of(tile);
    const int64_t rows = tile.n;
    Unit* by_depth = grad_scores_by_depth;
    for (int64_t k = 0; k < n; k += D) {
      upcoming.prefetch_some();
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

  // Scores of a vector of rows against one key, in base 2, and the slopes of their cap.
  template <bool kMasked>
  [[gnu::always_inline]] static typename S::Vec score(const Arrays& a, int64_t key, int64_t r,
                                                      Factors factors, typename S::Vec& cap_slope) {
    const int64_t at = key * kTileQueries + r;
    auto x = S::mul(S::load(a.probabilities + at), S::set1(factors.scale));
    cap_slope = S::set1(1);
    if (kMasked && factors.softcap > 0) {
      const auto t = tanh<S>(S::div(x, S::set1(factors.softcap)));
      x = S::mul(t, S::set1(factors.softcap));
      cap_slope = S::sub(cap_slope, S::mul(t, t));
    }
    if (kMasked && a.bias) x = S::add(x, S::load(a.bias + at));
    return x;
  }

  // x, but -infinity where the mask excludes the key, which may have scored NaN.
  [[gnu::always_inline]] static typename S::Vec exclude(const Arrays& a, int64_t key, int64_t r,
                                                        typename S::Vec x) {
    const auto excluded = S::set1(-kInfinity<Real>);
    const auto column = S::set1(static_cast<Real>(key));
    x = S::select(S::less(column, S::load(a.begin + r)), excluded, x);
    x = S::select(S::less(column, S::load(a.end + r)), x, excluded);
    if (!a.bias) return x;
    const auto bias = S::load(a.bias + key * kTileQueries + r);
    return S::select(S::equal(bias, excluded), excluded, x);
  }

  // dS of a vector of rows against one key, after the cap, with what is excluded at 0; `dropped`
  // likewise gets the probabilities as the output saw them.
  template <bool kMasked>
  [[gnu::always_inline]] static typename S::Vec score_gradient(const Arrays& a, int64_t key,
                                                               int64_t r, Factors factors,
                                                               typename S::Vec delta,
                                                               typename S::Vec& dropped,
                                                               typename S::Vec& cap_slope) {
    const int64_t at = key * kTileQueries + r;
    auto x = score<kMasked>(a, key, r, factors, cap_slope);
    x = S::sub(x, S::load(a.lse_maximum + r));
    if (kMasked && a.lse_rest) x = S::sub(x, S::load(a.lse_rest + r));
    if (kMasked) x = exclude(a, key, r, x);
    const auto p = Op::exp2(x);
    auto grad = S::load(a.grad_scores + at);
    dropped = p;
    if (a.dropout) {
      const auto factor = S::load(a.dropout + at);
      dropped = S::mul(p, factor);
      grad = S::mul(grad, factor);
    }
    grad = S::mul(p, S::sub(grad, delta));
    // Selected rather than multiplied: the value of an excluded key may be NaN.
    if (kMasked) grad = S::select(S::equal(x, S::set1(-kInfinity<Real>)), S::set1(0), grad);
    return grad;
  }

  template <bool kAsUnits, bool kMasked>
  [[gnu::always_inline]] static typename S::Vec differentiate_vector(const Arrays& a, int64_t key,
                                                                     int64_t r, Factors factors) {
    typename S::Vec dropped, cap_slope;
    const auto delta = S::load(a.delta + r);
    auto grad = score_gradient<kMasked>(a, key, r, factors, delta, dropped, cap_slope);
    if (kAsUnits) {
      if (kMasked && a.grad_biases) S::store(a.grad_biases + key * kTileQueries + r, grad);
      if (kMasked && factors.softcap > 0) {
        // Selected again: the slope of an excluded key may be NaN.
        grad = S::select(S::equal(grad, S::set1(0)), S::set1(0), S::mul(grad, cap_slope));
      }
      if (Op::kDepth > 1 && a.residuals)
        S::store(a.residuals + key * kTileQueries + r, Op::residual(grad));
      Op::store_units(a.probabilities + key * kTileQueries + r / Op::kDepth, dropped);
      Op::store_units(a.grad_scores + key * kTileQueries + r / Op::kDepth, grad);
    } else {
      S::store(a.grad_scores + key * kTileQueries + r, grad);
    }
    return grad;
  }

  TilePositions<S> positions_;
  Real* own_grad_biases_;  // null where they are grad_scores, or not wanted
  Real* begin_;    // [kTileQueries]: the band's first key of each row, from the tile's first
  Real* end_;      // [kTileQueries]
  Real* by_row_;   // [kTileQueries, kTileKeys]: bias or dropout as read
  Real* bias_;     // [kTileKeys, kTileQueries], in base 2; null without bias
  Real* dropout_;  // likewise the factors; null without dropout
  bool has_few_ = false;
  bool biased_ = false;  // whether the tile at hand has biases
};

}  // namespace
}  // namespace attn::cpu
