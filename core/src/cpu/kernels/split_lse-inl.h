// Splits the log-sum-exp of rows in which it is large into two numbers, for the backward passes.
//
// They recompute P = 2^(score - lse). A large lse is too coarse for that: a float32 near 1e6 has
// lost the logarithm of the number of keys. So the largest score of such a row and the logarithm
// of its sum are found anew, from the scores that the passes see.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/kernels/score_gradients-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "cpu/kernels/tasks-inl.h"

namespace attn::cpu {
namespace {

template <class Op>
struct SplitLseScratch {
  using Real = typename Op::S::Real;
  ScoreGradients<Op> tile;
  Real* maximum;  // [kTileQueries]
  Real* total;    // [kTileQueries]

  SplitLseScratch(Scratch& scratch, const BackwardProblem& p, const GradientWidths<Op>& w)
      : tile(scratch, p, w),
        maximum(scratch.take<Real>(kTileQueries)),
        total(scratch.take<Real>(kTileQueries)) {}
};

// A tile of query rows of one key head.
template <class Op>
class SplitLseTask {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  SplitLseTask(const BackwardProblem& p, const GradientWidths<Op>& w, SplitLseScratch<Op>& s)
      : p_(p), w_(w), s_(s) {}

  void run(const Sequence& sequence, int64_t key_head, int64_t first) {
    QueryTile<Op>& queries = s_.tile.queries;
    queries.place(p_, sequence, key_head, first, p_.G * sequence.Mq);
    bool any = false;
    for (int64_t r = 0; r < queries.n; ++r) any |= is_large(lse(r));
    if (!any) return;
    queries.load_queries(p_, s_.tile.rows);
    for (int64_t r = 0; r < kTileQueries; ++r) {
      s_.maximum[r] = -kInfinity<Real>;
      s_.total[r] = 0;
    }
    const KeyRange seen = queries.seen;
    for (int64_t begin = seen.begin / kTileKeys * kTileKeys; begin < seen.end; begin += kTileKeys) {
      s_.tile.add_to_softmax(p_, w_, begin, s_.maximum, s_.total);
    }
    for (int64_t r = 0; r < queries.n; ++r) {
      if (is_large(lse(r))) store(r);
    }
  }

 private:
  QueryRow query(int64_t r) const { return s_.tile.queries.query(p_, r); }
  const Sequence& sequence() const { return s_.tile.queries.sequence; }
  Real lse(int64_t r) const { return row_scalar<Real>(p_.lse, sequence(), query(r)); }

  void store(int64_t r) {
    RunningSoftmax<Real> row{s_.maximum[r], s_.total[r]};
    if (p_.sink) {
      const Real sink = read_score<Real>(p_.sink.at(query(r).h), p_.sink.dtype);
      join_sink<S>(row, sink * static_cast<Real>(kLog2E));
    }
    SplitLse<Real> split{lse(r) * static_cast<Real>(kLog2E), 0};
    if (is_sum_of(row, lse(r))) {
      split = {row.maximum, static_cast<Real>(__builtin_log2(static_cast<double>(row.total)))};
    }
    row_scalar<Real>(p_.lse_maximum, sequence(), query(r)) = split.maximum;
    row_scalar<Real>(p_.lse_rest, sequence(), query(r)) = split.rest;
  }

  // Whether `lse` is that of the row up to rounding: a caller may give one of more keys than these,
  // of which the row then has its share.
  static bool is_sum_of(const RunningSoftmax<Real>& row, Real lse) {
    const double difference = static_cast<double>(log_sum_exp(row) - lse);
    const double rounding = 8 * static_cast<double>(std::numeric_limits<Real>::epsilon() * lse);
    return __builtin_fabs(difference) <= __builtin_fabs(rounding);
  }

  const BackwardProblem& p_;
  const GradientWidths<Op>& w_;
  SplitLseScratch<Op>& s_;
};

// Takes room for the split numbers, which the problem then points to.
template <class Op>
void place_split_lses(BackwardProblem& p, Scratch& workspace) {
  const auto take = [&] {
    char* data = reinterpret_cast<char*>(workspace.take<typename Op::S::Real>(p.B * p.Hq * p.Mq));
    return RowScalars{data, p.Hq * p.Mq, p.Mq, 1};
  };
  p.lse_maximum = take();
  p.lse_rest = take();
}

// Query tiles of a key head of the longest sequence.
inline int64_t split_lse_tiles(const BackwardProblem& p) {
  return (p.G * p.most_queries + kTileQueries - 1) / kTileQueries;
}

inline int64_t split_lse_tasks(const BackwardProblem& p) {
  return p.num_sequences * p.Hkv * split_lse_tiles(p);
}

template <class Op>
int64_t split_lses_workspace(const BackwardProblem& p, int workers) {
  return busy_workers(workers, split_lse_tasks(p)) *
         scratch_bytes_of<SplitLseScratch<Op>>(p, GradientWidths<Op>(p));
}

template <class Real>
bool has_large_lse(const BackwardProblem& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t h = 0; h < p.Hq; ++h) {
      for (int64_t m = 0; m < p.Mq; ++m) {
        if (is_large(p.lse.at<Real>(b, h, m))) return true;
      }
    }
  }
  return false;
}

// Fills what place_split_lses made room for, in the rows whose lse is large.
template <class Op>
void split_large_lses(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
  if (!has_large_lse<typename Op::S::Real>(p)) return;
  const GradientWidths<Op> widths(p);
  const int64_t tiles = split_lse_tiles(p);
  const auto split = [&](int64_t task, SplitLseScratch<Op>& scratch) {
    const int64_t head = task / tiles;
    SplitLseTask<Op>(p, widths, scratch)
        .run(p.sequence(head / p.Hkv), head % p.Hkv, task % tiles * kTileQueries);
  };
  run_with_scratch<SplitLseScratch<Op>>(runner, split_lse_tasks(p), workspace, split, p, widths);
}

}  // namespace
}  // namespace attn::cpu
