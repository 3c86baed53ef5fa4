// Turns one query row's scores against a tile of keys into probabilities, under the whole mask.
#pragma once

#include <cstdint>

#include "cpu/kernels/pack-inl.h"
#include "cpu/kernels/position_scores-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scores-inl.h"
#include "cpu/kernels/softmax-inl.h"

namespace attn::cpu {
namespace {

// Room for the biases, the scores of positions and the dropout factors of a row of a tile.
template <class Op>
struct RowWeights {
  using Real = typename Op::S::Real;
  Real* bias;
  Real* dropout;
  Real* rests;  // of the probabilities of a row that sees few keys

  RowWeights(Scratch& scratch, int64_t keys)
      : bias(scratch.take<Real>(keys + 2 * Op::S::kWidth)),
        dropout(scratch.take<Real>(round_up(keys, 64))),
        rests(scratch.take<Real>(Op::kDepth > 1 ? round_up(keys, 64) : 0)) {}
};

// Keys [at.begin, at.begin + at.n) of the row, of which it sees those in `seen`; `positions` are
// what positions add to its scores, in base 2, or null. Returns the factor that brings what the row
// accumulated before to the new maximum.
template <class Op, bool kBlocksAsBias>
typename Op::S::Real attend_row(const Problem& p, const ScoresAt& at, KeyRange seen,
                                typename Op::S::Real* scores, const typename Op::S::Real* positions,
                                const RowWeights<Op>& weights,
                                RunningSoftmax<typename Op::S::Real>& running) {
  using S = typename Op::S;
  using Real = typename S::Real;
  ScoreRow<Op> row;
  row.scores = scores;
  row.n = round_up(at.n, S::kWidth);
  row.begin = smaller(larger(seen.begin - at.begin, 0), at.n);
  row.end = larger(smaller(seen.end - at.begin, at.n), row.begin);
  row.scale = static_cast<Real>(p.scale * kLog2E);
  row.softcap = static_cast<Real>(p.softcap * kLog2E);
  if (kBlocksAsBias && p.blocks) {
    load_bias_row_with_blocks<S>(weights.bias, p, at);
    row.bias = weights.bias;
  } else if (has_score_bias(p, at)) {
    load_bias_row<S>(weights.bias, p, at);
    row.bias = weights.bias;
  }
  if (row.bias && positions) {
    add_position_scores<S>(weights.bias, positions, at.n, Real(1));
  } else if (positions) {
    row.bias = positions;
  }
  if (p.dropout.enabled) {
    load_dropout_row(weights.dropout, p.dropout, at);
    row.dropout = weights.dropout;
  }
  if (sees_few(seen)) row.rests = weights.rests;
  return softmax_row(row, running);
}

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
