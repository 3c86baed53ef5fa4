// The online softmax of one row of scores against one tile of keys.
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3, in base 2.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

// What a row has seen so far: probabilities are 2^(score - maximum), their sum `total`.
template <class Real>
struct RunningSoftmax {
  Real maximum = -kInfinity<Real>;
  Real total = 0;
};

// tanh(x) to about 3 units in the last place. `x` is finite, or NaN.
// Near 0 an odd polynomial (weighted minimax on [0, 0.6]) keeps what (1 - t) / (1 + t) cancels.
template <class S>
typename S::Vec tanh(typename S::Vec x) {
  using Real = typename S::Real;
  if constexpr (sizeof(Real) == 8) {
    Real lanes[S::kWidth];
    S::store(lanes, x);
    for (Real& lane : lanes) lane = __builtin_tanh(lane);
    return S::load(lanes);
  } else {
    const auto square = S::mul(x, x);
    auto near = S::fma(square, S::set1(-0.0058951578f), S::set1(0.020795971f));
    near = S::fma(near, square, S::set1(-0.05378383f));
    near = S::fma(near, square, S::set1(0.13331924f));
    near = S::fma(near, square, S::set1(-0.33333299f));
    near = S::fma(S::mul(near, square), x, x);
    const auto magnitude = S::max(S::sub(S::set1(0), x), x);
    const auto t = S::exp2(S::mul(magnitude, S::set1(static_cast<Real>(-2 * kLog2E))));
    const auto far = S::div(S::sub(S::set1(1), t), S::add(S::set1(1), t));
    const auto signed_far = S::select(S::less(x, S::set1(0)), S::sub(S::set1(0), far), far);
    return S::select(S::less(magnitude, S::set1(0.6f)), near, signed_far);
  }
}

// One row's tile of scores. `n` is a whole number of vectors; every array has room for it.
// Passed by value: stores to the scores might otherwise change it, for all the compiler knows.
template <class Op>
struct ScoreRow {
  using Real = typename Op::S::Real;
  Real* scores = nullptr;              // query . key; changed
  typename Op::Unit* units = nullptr;  // of the probabilities, written; may be where the scores are
  int64_t n = 0;
  int64_t begin = 0, end = 0;     // the columns the band lets through, in [0, n]
  Real scale = 1;                 // to base 2: scale * log2(e); 1 once they are weighed
  Real softcap = 0;               // in base 2; 0: none
  const Real* bias = nullptr;     // in base 2, or null
  const Real* dropout = nullptr;  // factors, or null
  Real* residuals = nullptr;      // gets what rounding takes from the probabilities, unless null

  // In whole vectors: those that the band excludes as a whole are never looked at.
  KeyRange seen() const {
    return {begin / Op::S::kWidth * Op::S::kWidth, round_up(end, Op::S::kWidth)};
  }
  // Whether there is nothing to do but scale: the pass that takes exponentials then does it.
  bool is_only_scaled() const { return scale > 0 && softcap == 0 && bias == nullptr; }
};

// Scales and caps the scores of whole vectors of columns in place and adds the bias.
template <class Op>
[[gnu::noinline]] void weigh_scores(const ScoreRow<Op> row, KeyRange columns) {
  using S = typename Op::S;
  using Real = typename S::Real;
  auto scale = S::set1(row.scale);
  if (row.softcap > 0) {
    const auto softcap = S::set1(row.softcap);
    for (int64_t c = columns.begin; c < columns.end; c += S::kWidth) {
      const auto x = S::div(S::mul(S::load(row.scores + c), scale), softcap);
      S::store(row.scores + c, S::mul(tanh<S>(x), softcap));
    }
    scale = S::set1(1);
  }
  if (!row.bias) {
    for (int64_t c = columns.begin; c < columns.end; c += S::kWidth) {
      S::store(row.scores + c, S::mul(S::load(row.scores + c), scale));
    }
    return;
  }
  const auto excluded = S::set1(-kInfinity<Real>);
  for (int64_t c = columns.begin; c < columns.end; c += S::kWidth) {
    const auto bias = S::load(row.bias + c);
    // Rounded as the backward rounds it. Selected: an excluded key may have scored NaN.
    const auto x = S::add(S::mul(S::load(row.scores + c), scale), bias);
    S::store(row.scores + c, S::select(S::equal(bias, excluded), excluded, x));
  }
}

// Makes the scores of those of the columns that lie outside the band -infinity: at most some of the
// first vector's and of the last one's.
template <class Op>
void exclude_edges(const ScoreRow<Op> row, KeyRange columns) {
  using S = typename Op::S;
  using Real = typename S::Real;
  const auto excluded = S::set1(-kInfinity<Real>);
  if (row.begin > columns.begin) {
    Real* const at = row.scores + columns.begin;
    const auto begin = S::set1(static_cast<Real>(row.begin - columns.begin));
    S::store(at, S::select(S::less(S::iota(), begin), excluded, S::load(at)));
  }
  if (row.end < columns.end) {
    const int64_t last = columns.end - S::kWidth;
    Real* const at = row.scores + last;
    const auto end = S::set1(static_cast<Real>(row.end - last));
    S::store(at, S::select(S::less(S::iota(), end), S::load(at), excluded));
  }
}

// In each lane the largest of its scores.
template <class S>
[[gnu::always_inline]] inline typename S::Vec largest_of(const typename S::Real* scores,
                                                         KeyRange columns) {
  constexpr int kChains = 4;  // of comparisons, each of which waits for the one before
  typename S::Vec most[kChains];
  for (auto& chain : most) chain = S::set1(-kInfinity<typename S::Real>);
  int64_t c = columns.begin;
  for (; c + kChains * S::kWidth <= columns.end; c += kChains * S::kWidth) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) {
      most[i] = S::max(most[i], S::load(scores + c + i * S::kWidth));
    }
  }
  for (; c < columns.end; c += S::kWidth) most[0] = S::max(most[0], S::load(scores + c));
  return S::max(S::max(most[0], most[1]), S::max(most[2], most[3]));
}

// Writes probabilities of 0.
template <class Op>
void clear_units(typename Op::Unit* units, KeyRange columns) {
  using S = typename Op::S;
  for (int64_t c = columns.begin; c < columns.end; c += S::kWidth) {
    Op::store_units(units + c / Op::kDepth, S::set1(0));
  }
}

// Raises the maximum to the largest lane of `most`, if it is below that. Returns the factor that
// brings what was accumulated before to the new maximum; 1 if it stayed.
template <class S>
typename S::Real raise(RunningSoftmax<typename S::Real>& running, typename S::Vec most) {
  using Real = typename S::Real;
  const Real before = running.maximum;
  if (!S::any(S::less(S::set1(before), most))) return 1;
  running.maximum = S::reduce_max(most);
  if (before == -kInfinity<Real>) return 1;  // all was 0
  Real factors[S::kWidth];
  S::store(factors, S::exp2(S::set1(before - running.maximum)));
  running.total *= factors[0];
  return factors[0];
}

// Weighs the scores and lets the largest raise the maximum. Returns the factor that brings what was
// accumulated before to the new maximum; 1 if it stayed.
template <class Op>
[[gnu::always_inline]] inline typename Op::S::Real weigh_row(
    ScoreRow<Op>& row, RunningSoftmax<typename Op::S::Real>& running) {
  using S = typename Op::S;
  const KeyRange seen = row.seen();
  if (!row.is_only_scaled()) {
    weigh_scores(row, seen);
    row.scale = 1;
  }
  exclude_edges(row, seen);
  return raise<S>(running, S::mul(largest_of<S>(row.scores, seen), S::set1(row.scale)));
}

// Turns weighed scores into units of (dropped-out) probabilities, whose sum joins the running
// softmax.
template <class Op>
[[gnu::always_inline]] inline void exponentiate_row(const ScoreRow<Op> row,
                                                    RunningSoftmax<typename Op::S::Real>& running) {
  using S = typename Op::S;
  using Real = typename S::Real;
  const KeyRange seen = row.seen();
  clear_units<Op>(row.units, {0, seen.begin});
  // With nothing seen yet any finite reference serves: every probability is 2^-infinity, or NaN.
  const auto maximum = S::set1(running.maximum == -kInfinity<Real> ? Real(0) : running.maximum);
  const auto scale = S::set1(row.scale);
  auto sum = S::set1(0);
  const auto probabilities = [&](int64_t c) {
    // Not fused: the largest score was rounded when it was scaled, so the others have to be. Where
    // scores are large, 2 to the power of what that rounding took might be infinite, or 0.
    const auto p = Op::exp2(S::sub(S::mul(S::load(row.scores + c), scale), maximum));
    sum = S::add(sum, p);
    return p;
  };
  int64_t c = seen.begin;
  if (!row.dropout && !(Op::kDepth > 1 && row.residuals)) {
    for (; c + 2 * S::kWidth <= seen.end; c += 2 * S::kWidth) {
      const auto first = probabilities(c), second = probabilities(c + S::kWidth);
      Op::store_units(row.units + c / Op::kDepth, first, second);
    }
  }
  for (; c < seen.end; c += S::kWidth) {
    auto p = probabilities(c);
    if (row.dropout) p = S::mul(p, S::load(row.dropout + c));
    if (Op::kDepth > 1 && row.residuals) S::store(row.residuals + c, Op::residual(p));
    Op::store_units(row.units + c / Op::kDepth, p);
  }
  // Last: units of pairs may lie where scores were still to be read.
  clear_units<Op>(row.units, {seen.end, row.n});
  running.total += S::reduce_add(sum);
}

// Lets a logit (in base 2) that carries no value join the row. Returns the factor that brings what
// was accumulated before to the new maximum.
template <class S>
typename S::Real join_sink(RunningSoftmax<typename S::Real>& running, typename S::Real sink) {
  using Real = typename S::Real;
  if (sink == -kInfinity<Real>) return 1;
  const Real most = running.maximum > sink ? running.maximum : sink;
  Real before[S::kWidth], joining[S::kWidth];
  S::store(before, S::exp2(S::set1(running.maximum - most)));
  S::store(joining, S::exp2(S::set1(sink - most)));
  running.total = running.total * before[0] + joining[0];
  running.maximum = most;
  return before[0];
}

// The natural logarithm of the sum of exponentials.
template <class Real>
Real log_sum_exp(const RunningSoftmax<Real>& running) {
  if (running.total == Real(0)) return -kInfinity<Real>;
  const double log2 = running.maximum + __builtin_log2(static_cast<double>(running.total));
  return static_cast<Real>(log2 * kLn2);
}

}  // namespace
}  // namespace attn::cpu
