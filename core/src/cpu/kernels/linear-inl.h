// A linear layer on a few rows: the product of decoding, with rows of the weight for keys.
#pragma once

#include <cstdint>

#include "cpu/kernels/decode_products-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/tasks-inl.h"
#include "problem/linear_problem.h"

namespace attn::cpu {
namespace {

template <class Op>
struct LinearTiling {
  static constexpr int64_t kTaskFeatures = 64;

  int64_t units;  // of a packed row
  int64_t tasks;

  explicit LinearTiling(const LinearProblem& p)
      : units(round_up(units_of<Op>(p.E), Op::S::kWidth)),
        tasks((p.F + kTaskFeatures - 1) / kTaskFeatures) {}
};

// What a worker needs for itself.
template <class Op>
struct LinearScratch {
  using Unit = typename Op::Unit;
  typename Op::S::Real* sums;  // [N, kWidth]
  Unit* converted;             // [kWidth, units]: rows of the weight

  LinearScratch(Scratch& scratch, const LinearProblem& p, const LinearTiling<Op>& t)
      : sums(scratch.take<typename Op::S::Real>(p.N * Op::S::kWidth)),
        converted(scratch.take<Unit>(Op::S::kWidth * t.units)) {}
};

template <class Op>
class LinearLayer {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;
  using Unit = typename Op::Unit;
  using Tiling = LinearTiling<Op>;

  LinearLayer(const LinearProblem& p, const Tiling& t, Scratch& shared)
      : p_(p), t_(t), packed_(shared.take<Unit>(p.N * t.units)) {}

  void pack() {
    for (int64_t r = 0; r < p_.N; ++r) {
      const char* row = p_.x.row(r, p_.dtype);
      pack_rows<Op>(packed_ + r * t_.units, t_.units, &row, p_.dtype, 1, p_.E);
    }
  }

  void run(int64_t task, const LinearScratch<Op>& scratch) const {
    const int64_t begin = task * Tiling::kTaskFeatures;
    const int64_t end = smaller(begin + Tiling::kTaskFeatures, p_.F);
    with_source<Op>(p_.dtype, [&]<DType kSource>() {
      for (int64_t f = begin; f < end; f += S::kWidth) {
        add_up<kSource>(scratch, f, smaller(S::kWidth, end - f));
      }
    });
  }

 private:
  // Features [f, f + n) of every row.
  template <DType kSource>
  void add_up(const LinearScratch<Op>& scratch, int64_t f, int64_t n) const {
    const char* rows[S::kWidth];
    for (int64_t j = 0; j < n; ++j) rows[j] = p_.weight.row(f + j, p_.dtype);
    const bool is_whole = p_.E % (S::kWidth * Op::kDepth) == 0;
    if (is_whole && (kSource == Op::kDType || p_.N <= kScoreRows<S>)) {
      multiply<kSource>(scratch.sums, rows, n, p_.E);
    } else {
      RowPrefetcher none;
      convert_rows<Op, kSource>(scratch.converted, t_.units, rows, n, p_.E, none);
      for (int64_t j = 0; j < n; ++j) {
        rows[j] = reinterpret_cast<const char*>(scratch.converted + j * t_.units);
      }
      multiply<Op::kDType>(scratch.sums, rows, n, t_.units * Op::kDepth);
    }
    store<kSource>(scratch.sums, f, n);
  }

  template <DType kSource>
  void multiply(Real* sums, const char* const* rows, int64_t n, int64_t width) const {
    RowPrefetcher none;
    const auto of_rows = [&]<int kRows>(int64_t r) {
      for (int64_t j = 0; j < S::kWidth; j += S::kWidth / kRows) {
        score_keys<Op, kSource, kRows>(sums + r * S::kWidth + j, S::kWidth, packed_ + r * t_.units,
                                       t_.units, rows + j, n - j, width, none);
      }
    };
    int64_t r = 0;
    for (; r + kScoreRows<S> <= p_.N; r += kScoreRows<S>) {
      of_rows.template operator()<kScoreRows<S>>(r);
    }
    for (; r < p_.N; ++r) of_rows.template operator()<1>(r);
  }

  template <DType kSource>
  void store(Real* sums, int64_t f, int64_t n) const {
    const auto bias = p_.bias ? load_elements<S, kSource>(p_.bias, f, p_.F) : S::set1(0);
    for (int64_t r = 0; r < p_.N; ++r) {
      Real* sum = sums + r * S::kWidth;
      S::store(sum, S::add(S::load(sum), bias));
      char* to = p_.out.row(r, p_.dtype) + f * element_bytes(p_.dtype);
      store_row<S>(to, p_.dtype, sum, n, Real(1));
    }
  }

  const LinearProblem& p_;
  const Tiling& t_;
  Unit* packed_;  // [N, units]
};

template <class Op>
int64_t linear_layer_workspace(const LinearProblem& p, int workers) {
  const LinearTiling<Op> tiling(p);
  Scratch shared(nullptr);
  LinearLayer<Op>(p, tiling, shared);
  return shared.used() +
         busy_workers(workers, tiling.tasks) * scratch_bytes_of<LinearScratch<Op>>(p, tiling);
}

template <class Op>
void linear_layer(const LinearProblem& p, void* workspace, const TaskRunner& runner) {
  const LinearTiling<Op> tiling(p);
  Scratch shared(workspace);
  LinearLayer<Op> layer(p, tiling, shared);
  layer.pack();
  run_with_scratch<LinearScratch<Op>>(
      runner, tiling.tasks, shared.rest(),
      [&](int64_t task, const LinearScratch<Op>& scratch) { layer.run(task, scratch); }, p, tiling);
}

}  // namespace
}  // namespace attn::cpu
