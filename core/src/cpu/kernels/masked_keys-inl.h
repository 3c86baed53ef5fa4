// Turns query rows' scores against some keys into probabilities, under the whole mask.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"
#include "cpu/kernels/position_scores-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scores-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "cpu/kernels/stores-inl.h"

namespace attn::cpu {
namespace {

// Room for the biases, the scores of positions and the dropout factors of a row of a tile.
template <class S>
struct RowWeights {
  using Real = typename S::Real;
  Real* bias;
  Real* dropout;
  Real* residuals;  // of a row's probabilities, if `with_residuals`

  RowWeights(Scratch& scratch, int64_t keys, bool with_residuals)
      : bias(scratch.take<Real>(keys + 2 * S::kWidth)),
        dropout(scratch.take<Real>(round_up(keys, 64))),
        residuals(scratch.take<Real>(with_residuals ? round_up(keys, 64) : 0)) {}
};

// Some keys of a sequence under the whole mask: what rows against them share is worked out once.
// kDecodes: blocks come as biases, and every row keeps its rounding residuals.
template <class Op, bool kDecodes>
class MaskedKeys {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  // `is_kept`: the tensor bias adds nothing to any of them.
  MaskedKeys(const Problem& p, const Sequence& sequence, KeyRange keys,
             const RowWeights<S>& weights, bool is_kept)
      : p_(p),
        sequence_(sequence),
        keys_(keys),
        weights_(weights),
        is_kept_(is_kept),
        has_bias_(has_score_bias(p, kDecodes && p.blocks, is_kept)),
        scale_(static_cast<Real>(p.scale * kLog2E)),
        softcap_(static_cast<Real>(p.softcap * kLog2E)) {}

  KeyRange range() const { return keys_; }

  // Weighs the scores of a row that sees the keys in `seen`; `positions` are what positions add to
  // them, in base 2, or null. Returns the factor that brings what the row accumulated before to its
  // new maximum.
  Real weigh(ScoreRow<Op>& row, QueryRow at, KeyRange seen, const Real* positions,
             RunningSoftmax<Real>& running) const {
    const int64_t n = keys_.end - keys_.begin;
    row.n = round_up(n, S::kWidth);
    row.begin = smaller(larger(seen.begin - keys_.begin, 0), n);
    row.end = larger(smaller(seen.end - keys_.begin, n), row.begin);
    row.scale = scale_;
    row.softcap = softcap_;
    row.bias = has_bias_ ? load_bias(at, positions) : positions;
    return weigh_row(row, running);
  }

  // Turns the weighed scores into probabilities.
  void exponentiate(ScoreRow<Op>& row, QueryRow at, KeyRange seen,
                    RunningSoftmax<Real>& running) const {
    if (p_.dropout.enabled) {
      load_dropout_row(weights_.dropout, p_.dropout, scores_at(at));
      row.dropout = weights_.dropout;
    }
    if (kDecodes || sees_few(seen)) row.residuals = weights_.residuals;
    exponentiate_row(row, running);
  }

 private:
  ScoresAt scores_at(QueryRow at) const {
    return {sequence_, at.h, at.i, keys_.begin, keys_.end - keys_.begin, is_kept_};
  }

  [[gnu::noinline]] const Real* load_bias(QueryRow at, const Real* positions) const {
    const ScoresAt scores = scores_at(at);
    if constexpr (kDecodes) {
      load_bias_row_with_blocks<S>(weights_.bias, p_, scores);
    } else {
      load_bias_row<S>(weights_.bias, p_, scores);
    }
    if (positions) add_position_scores<S>(weights_.bias, positions, scores.n, Real(1));
    return weights_.bias;
  }

  const Problem& p_;
  const Sequence& sequence_;
  const KeyRange keys_;
  const RowWeights<S>& weights_;
  const bool is_kept_, has_bias_;
  const Real scale_, softcap_;
};

template <class S>
void scale_row(typename S::Real* row, int64_t n, typename S::Real factor) {
  for (int64_t c = 0; c < n; c += S::kWidth) {
    S::store(row + c, S::mul(S::load(row + c), S::set1(factor)));
  }
}

// Writes the row's output, from what it accumulated, and its log-sum-exp.
template <class S>
void finish_row(const ForwardProblem& p, const Sequence& sequence, QueryRow at,
                RunningSoftmax<typename S::Real> running, const typename S::Real* accumulated) {
  using Real = typename S::Real;
  Real factor = 1;
  if (p.sink) {
    const Real sink = read_score<Real>(p.sink.at(at.h), p.sink.dtype);
    factor = join_sink<S>(running, sink * static_cast<Real>(kLog2E));
  }
  store_row<S>(query_row_of(p.out, sequence, at), p.out.dtype, accumulated, p.Kv,
               running.total == Real(0) ? Real(0) : factor / running.total);
  if (p.lse) row_scalar<Real>(p.lse, sequence, at) = log_sum_exp(running);
}

}  // namespace
}  // namespace attn::cpu
