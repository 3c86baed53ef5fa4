// The gradient of a bias tensor: dS, summed over the axes that the bias broadcasts.
//
// A task owns one tile of the bias and visits every tile of scores that it was broadcast to, in a
// fixed order: the sum is in float32 and the same for any number of threads.
#pragma once

#include <cstdint>

#include "cpu/kernels/score_gradients-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/tasks-inl.h"

namespace attn::cpu {
namespace {

// How the bias is cut into tasks, and the scores a task visits: all of an axis, or its own part.
// Tiles are counted within a sequence; the axis of sequences is that of the batch without any.
struct BiasTiling {
  int64_t query_tiles, key_tiles;      // of one head's scores, in the longest sequence
  int64_t own_s, own_h, own_q, own_k;  // tasks along each axis; 1 where one task takes it all
  bool sums_s;                         // over the batch
  bool adds_up;   // all sequences share one row of the bias: a task takes them one by one
  bool all_keys;  // a task visits every tile of keys, as a page may come twice

  explicit BiasTiling(const BackwardProblem& p)
      : query_tiles((p.most_queries + kTileQueries - 1) / kTileQueries),
        key_tiles((p.most_keys + kTileKeys - 1) / kTileKeys),
        sums_s(p.grad_bias_sums_b && !p.sequences),
        adds_up(p.sequences && p.grad_bias_sums_m),
        all_keys(!p.grad_bias_sums_n && (adds_up || p.pages.table)) {
    own_s = sums_s || adds_up ? 1 : p.num_sequences;
    own_h = p.grad_bias_sums_h ? 1 : p.Hq;
    own_q = p.grad_bias_sums_m ? 1 : query_tiles;
    own_k = p.grad_bias_sums_n || all_keys ? 1 : key_tiles;
  }

  int64_t tasks() const { return own_s * own_h * own_q * own_k; }
};

template <class Op>
struct BiasGradientScratch {
  using Real = typename Op::S::Real;
  ScoreGradients<Op> gradients;
  Real* sum;  // [kTileKeys, kTileQueries]
  Real* row;  // [kTileKeys], and a vector more: its last element is stored from a vector of its own
  Real* total;  // [Mkv], likewise: the one row that all sequences add to; null if there is none

  BiasGradientScratch(Scratch& scratch, const BackwardProblem& p, const GradientWidths<Op>& w)
      : gradients(scratch, p, w),
        sum(scratch.take<Real>(kTileKeys * kTileQueries)),
        row(scratch.take<Real>(kTileKeys + Op::S::kWidth)),
        total(BiasTiling(p).adds_up ? scratch.take<Real>(p.Mkv + Op::S::kWidth) : nullptr) {}
};

// One tile of the bias.
template <class Op>
class BiasGradientTask {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  BiasGradientTask(const BackwardProblem& p, const GradientWidths<Op>& w, const BiasTiling& t,
                   BiasGradientScratch<Op>& s, int64_t task)
      : p_(p),
        w_(w),
        t_(t),
        s_(s),
        own_k_(task % t.own_k),
        own_q_(task / t.own_k % t.own_q),
        own_h_(task / t.own_k / t.own_q % t.own_h),
        own_s_(task / t.own_k / t.own_q / t.own_h) {}

  void run() {
    const int64_t keys = p_.grad_bias_sums_n ? 1 : p_.Mkv;
    if (t_.adds_up) clear(s_.total, keys);
    each(t_.adds_up, own_s_, p_.num_sequences, [&](int64_t s) {
      const int64_t Mkv = p_.sequence(s).Mkv;
      each(t_.all_keys, own_k_, (Mkv + kTileKeys - 1) / kTileKeys,
           [&](int64_t k) { run_tile(s, k); });
    });
    if (t_.adds_up) store_run(p_.grad_bias.row(0, own_h_, 0), s_.total, keys);
  }

 private:
  void run_tile(int64_t s, int64_t k) {
    clear(s_.sum, kTileKeys * kTileQueries);
    each(t_.sums_s, s, p_.num_sequences, [&](int64_t index) {
      const Sequence sequence = p_.sequence(index);
      each(p_.grad_bias_sums_h, own_h_, p_.Hq, [&](int64_t h) {
        each(p_.grad_bias_sums_m, own_q_, t_.query_tiles,
             [&](int64_t q) { add_rows(sequence, h, q, k); });
      });
    });
    store(p_.sequence(s), k);
  }

  template <class F>
  static void each(bool all, int64_t own, int64_t extent, F&& visit) {
    for (int64_t x = all ? 0 : own; x < (all ? extent : own + 1); ++x) visit(x);
  }

  void add_rows(const Sequence& sequence, int64_t h, int64_t q, int64_t k) {
    if (q * kTileQueries >= sequence.Mq) return;
    if (p_.grad_bias_sums_n) return add_row_sums(sequence, h, q);
    ScoreGradients<Op>& gradients = s_.gradients;
    const int64_t group = h % p_.G;
    gradients.queries.place(p_, sequence, h / p_.G, group * sequence.Mq + q * kTileQueries,
                            (group + 1) * sequence.Mq);
    if (!gradients.queries.sees(p_, k * kTileKeys, (k + 1) * kTileKeys)) return;
    gradients.queries.load(p_, gradients.rows);
    if (!gradients.compute(p_, w_, k * kTileKeys)) return;
    for (int64_t j = 0; j < gradients.keys.n; ++j) {
      const Real* from = gradients.row(j);
      Real* to = s_.sum + j * kTileQueries;
      for (int64_t r = 0; r < gradients.queries.n; ++r) to[r] += from[r];
    }
  }

  // Shifting all scores of a row shifts its LSE and no probability: its dS sum to its dLSE. A sink
  // takes its part of that.
  void add_row_sums(const Sequence& sequence, int64_t h, int64_t q) {
    const int64_t first = q * kTileQueries;
    for (int64_t r = 0; r < smaller(kTileQueries, sequence.Mq - first); ++r) {
      const QueryRow at{h, first + r};
      const Real lse = row_scalar<Real>(p_.lse, sequence, at);
      if (lse == -kInfinity<Real>) continue;
      s_.sum[r] += 0 * lse;  // a row of NaN stays one
      if (p_.grad_lse) s_.sum[r] += row_scalar<Real>(p_.grad_lse, sequence, at);
      if (p_.sink) s_.sum[r] -= grad_sink_of_row<S>(p_, sequence, at);
    }
  }

  void store(const Sequence& sequence, int64_t k) {
    const int64_t i = own_q_ * kTileQueries;
    const int64_t j = k * kTileKeys;
    int64_t rows = smaller(kTileQueries, sequence.Mq - i);
    int64_t keys = smaller(kTileKeys, sequence.Mkv - j);
    if (p_.grad_bias_sums_m) rows = sum_rows();
    if (p_.grad_bias_sums_n) keys = 1;
    if (t_.adds_up) return add_to_total(sequence, j, keys);
    const int64_t first_row = p_.grad_bias_sums_m ? 0 : sequence.q_begin + i;
    const int64_t b = p_.sequences ? 0 : own_s_;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < keys; ++c) s_.row[c] = s_.sum[c * kTileQueries + r];
      char* row = p_.grad_bias.row(b, own_h_, first_row + r);
      if (p_.grad_bias_sums_n) {
        store_run(row, s_.row, 1);
        continue;
      }
      for (int64_t c = 0; c < keys;) {
        const int64_t run = sequence.keys_in_a_row(j + c, keys - c);
        store_run(at_key(row, sequence.key_row(j + c)), s_.row + c, run);
        c += run;
      }
    }
  }

  // The tile's first row, at the rows of its keys.
  void add_to_total(const Sequence& sequence, int64_t j, int64_t keys) {
    for (int64_t c = 0; c < keys; ++c) {
      s_.total[p_.grad_bias_sums_n ? 0 : sequence.key_row(j + c)] += s_.sum[c * kTileQueries];
    }
  }

  char* at_key(char* row, int64_t key) const {
    return row + key * p_.grad_bias.stride_n * element_bytes(p_.grad_bias.dtype);
  }

  // Pages add to what is there: one may come twice in a sequence.
  void store_run(char* to, Real* from, int64_t n) {
    const DType dtype = p_.grad_bias.dtype;
    for (int64_t c = 0; p_.pages.table && c < n; ++c) {
      from[c] += read_score<Real>(at_key(to, c), dtype);
    }
    if (p_.grad_bias.stride_n == 1 && !p_.pages.table) {
      return store_row<S>(to, dtype, from, n, Real(1));
    }
    for (int64_t c = 0; c < n; ++c) store_row<S>(at_key(to, c), dtype, from + c, 1, Real(1));
  }

  // Sums over query rows within the tile, into its first row; returns how many rows are left.
  int64_t sum_rows() {
    for (int64_t c = 0; c < kTileKeys; ++c) {
      Real* row = s_.sum + c * kTileQueries;
      for (int64_t r = 1; r < kTileQueries; ++r) row[0] += row[r];
    }
    return 1;
  }

  const BackwardProblem& p_;
  const GradientWidths<Op>& w_;
  const BiasTiling& t_;
  BiasGradientScratch<Op>& s_;
  const int64_t own_k_, own_q_, own_h_, own_s_;
};

// Sequences write only their part of the gradient: the rest is 0.
template <class S>
void clear_grad_bias(const BackwardProblem& p) {
  const typename S::Real zero[S::kWidth] = {};
  const int64_t heads = p.grad_bias_sums_h ? 1 : p.Hq;
  const int64_t rows = p.grad_bias_sums_m ? 1 : p.Mq, keys = p.grad_bias_sums_n ? 1 : p.Mkv;
  const int64_t step = p.grad_bias.stride_n * element_bytes(p.grad_bias.dtype);
  for (int64_t row = 0; row < heads * rows; ++row) {
    char* to = p.grad_bias.row(0, row / rows, row % rows);
    for (int64_t c = 0; c < keys; ++c) {
      store_row<S>(to + c * step, p.grad_bias.dtype, zero, 1, typename S::Real(1));
    }
  }
}

template <class Op>
int64_t bias_gradient_workspace(const BackwardProblem& p, int workers) {
  if (!p.grad_bias) return 0;
  return busy_workers(workers, BiasTiling(p).tasks()) *
         scratch_bytes_of<BiasGradientScratch<Op>>(p, GradientWidths<Op>(p));
}

template <class Op>
void bias_gradient(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
  const GradientWidths<Op> widths(p);
  const BiasTiling tiling(p);
  if (p.sequences) clear_grad_bias<typename Op::S>(p);
  const auto differentiate = [&](int64_t task, BiasGradientScratch<Op>& scratch) {
    BiasGradientTask<Op>(p, widths, tiling, scratch, task).run();
  };
  run_with_scratch<BiasGradientScratch<Op>>(runner, tiling.tasks(), workspace, differentiate, p,
                                            widths);
}

}  // namespace
}  // namespace attn::cpu
