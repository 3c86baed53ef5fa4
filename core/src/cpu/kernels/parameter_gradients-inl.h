// The gradients of what a mask keeps per head: slopes, the table of relative biases, and sinks.
//
// A task is a query head: it visits every tile of its scores in a fixed order, so that the sums are
// the same for any number of threads.
#pragma once

#include <cstdint>

#include "cpu/kernels/score_gradients-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/tasks-inl.h"

namespace attn::cpu {
namespace {

inline bool wants_relative(const BackwardProblem& p) { return p.grad_slopes || p.grad_table; }

template <class Op>
struct ParameterGradientScratch {
  ScoreGradients<Op> gradients;
  double* table;  // [width]: sums; double, since an entry may sum millions of scores

  ParameterGradientScratch(Scratch& scratch, const BackwardProblem& p, const GradientWidths<Op>& w)
      : gradients(scratch, p, w), table(scratch.take<double>(p.table.width)) {}
};

// One query head.
template <class Op>
class ParameterGradientTask {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  ParameterGradientTask(const BackwardProblem& p, const GradientWidths<Op>& w,
                        ParameterGradientScratch<Op>& s, int64_t h)
      : p_(p), w_(w), s_(s), h_(h) {}

  void run() {
    for (int64_t c = 0; c < p_.table.width; ++c) s_.table[c] = 0;
    for (int64_t index = 0; index < p_.num_sequences; ++index) {
      const Sequence sequence = p_.sequence(index);
      if (p_.grad_sink) add_sinks(sequence);
      for (int64_t i = 0; wants_relative(p_) && i < sequence.Mq; i += kTileQueries) {
        add_rows(sequence, i);
      }
    }
    store();
  }

 private:
  void add_sinks(const Sequence& sequence) {
    for (int64_t i = 0; i < sequence.Mq; ++i) {
      sink_ += grad_sink_of_row<S>(p_, sequence, {h_, i});
    }
  }

  void add_rows(const Sequence& sequence, int64_t i) {
    ScoreGradients<Op>& gradients = s_.gradients;
    const int64_t group = h_ % p_.G;
    gradients.queries.place(p_, sequence, h_ / p_.G, group * sequence.Mq + i,
                            (group + 1) * sequence.Mq);
    const KeyRange seen = gradients.queries.seen;
    if (seen.begin >= seen.end) return;
    gradients.queries.load(p_, gradients.rows);
    int64_t begin = seen.begin / kTileKeys * kTileKeys;
    for (; begin < seen.end; begin += kTileKeys) {
      if (!gradients.compute(p_, w_, begin)) continue;
      for (int64_t j = 0; j < gradients.keys.n; ++j) {
        // Of the tile's first query; it descends by one from row to row.
        const int64_t distance = begin + j - i - sequence.diagonal;
        if (p_.grad_slopes) add_slopes(gradients.row(j), distance);
        if (p_.grad_table) add_entries(gradients.row(j), distance);
      }
    }
  }

  void add_slopes(const Real* grad, int64_t distance) {
    double sum = 0;
    for (int64_t r = 0; r < s_.gradients.queries.n; ++r) {
      const int64_t d = distance - r;
      sum -= static_cast<double>(d < 0 ? -d : d) * static_cast<double>(grad[r]);
    }
    slope_ += sum;
  }

  void add_entries(const Real* grad, int64_t distance) {
    const int64_t R = p_.table.width / 2;
    for (int64_t r = 0; r < s_.gradients.queries.n; ++r) {
      const int64_t d = distance - r;
      s_.table[(d < -R ? -R : d > R ? R : d) + R] += static_cast<double>(grad[r]);
    }
  }

  void store() {
    if (p_.grad_sink) store_number(p_.grad_sink, 0, sink_);
    if (p_.grad_slopes) store_number(p_.grad_slopes, 0, slope_);
    for (int64_t c = 0; p_.grad_table && c < p_.table.width; ++c) {
      store_number(p_.grad_table, c, s_.table[c]);
    }
  }

  void store_number(const HeadParameters& to, int64_t index, double number) {
    const Real lanes[S::kWidth] = {static_cast<Real>(number)};
    store_row<S>(to.at(h_, index), to.dtype, lanes, 1, Real(1));
  }

  const BackwardProblem& p_;
  const GradientWidths<Op>& w_;
  ParameterGradientScratch<Op>& s_;
  const int64_t h_;
  double sink_ = 0, slope_ = 0;
};

inline bool wants_parameters(const BackwardProblem& p) { return wants_relative(p) || p.grad_sink; }

template <class Op>
int64_t parameter_gradients_workspace(const BackwardProblem& p, int workers) {
  if (!wants_parameters(p)) return 0;
  return busy_workers(workers, p.Hq) *
         scratch_bytes_of<ParameterGradientScratch<Op>>(p, GradientWidths<Op>(p));
}

template <class Op>
void parameter_gradients(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
  const GradientWidths<Op> widths(p);
  const auto differentiate = [&](int64_t head, ParameterGradientScratch<Op>& scratch) {
    ParameterGradientTask<Op>(p, widths, scratch, head).run();
  };
  run_with_scratch<ParameterGradientScratch<Op>>(runner, p.Hq, workspace, differentiate, p, widths);
}

}  // namespace
}  // namespace attn::cpu
