// The gradient of an additive bias: dS, summed over the axes that the bias broadcasts.
//
// A task owns one tile of the bias and visits every tile of scores that it was broadcast to, in a
// fixed order: the sum is in float32 and the same for any number of threads.
#pragma once

#include <cstdint>

#include "cpu/kernels/gradient_tile-inl.h"
#include "parallel/task_runner.h"

namespace attn::cpu {
namespace {

// How the bias is cut into tasks, and the scores a task visits: all of an axis, or its own part.
struct BiasTiling {
  int64_t query_tiles, key_tiles;      // of one head's scores
  int64_t own_b, own_h, own_q, own_k;  // tasks along each axis; 1 where the bias is summed

  explicit BiasTiling(const BackwardProblem& p)
      : query_tiles((p.Mq + kTileQueries - 1) / kTileQueries),
        key_tiles((p.Mkv + kTileKeys - 1) / kTileKeys),
        own_b(p.grad_bias_sums_b ? 1 : p.B),
        own_h(p.grad_bias_sums_h ? 1 : p.Hq),
        own_q(p.grad_bias_sums_m ? 1 : query_tiles),
        own_k(p.grad_bias_sums_n ? 1 : key_tiles) {}

  int64_t tasks() const { return own_b * own_h * own_q * own_k; }
};

template <class Op>
struct BiasGradientScratch {
  using Real = typename Op::S::Real;
  KeyBlock<Op> block;
  QueryTile<Op> tile;
  GradientTile<Op> gradients;
  Real* sum;  // [kTileKeys, kTileQueries]
  Real* row;  // [kTileKeys]
  const char** rows;

  BiasGradientScratch(Scratch& scratch, const BackwardProblem& p, const GradientWidths<Op>& w)
      : block(scratch, w, kTileKeys),
        tile(scratch, w),
        gradients(scratch, p),
        sum(scratch.take<Real>(kTileKeys * kTileQueries)),
        row(scratch.take<Real>(kTileKeys)),
        rows(scratch.take<const char*>(larger(kTileKeys, kTileQueries))) {}
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
        own_b_(task / t.own_k / t.own_q / t.own_h) {}

  void run() {
    for (int64_t c = 0; c < kTileKeys * kTileQueries; ++c) s_.sum[c] = 0;
    each(p_.grad_bias_sums_b, own_b_, p_.B, [&](int64_t b) {
      each(p_.grad_bias_sums_h, own_h_, p_.Hq, [&](int64_t h) {
        each(p_.grad_bias_sums_m, own_q_, t_.query_tiles, [&](int64_t q) { add_rows(b, h, q); });
      });
    });
    store();
  }

 private:
  template <class F>
  static void each(bool all, int64_t own, int64_t extent, F&& visit) {
    for (int64_t x = all ? 0 : own; x < (all ? extent : own + 1); ++x) visit(x);
  }

  void add_rows(int64_t b, int64_t h, int64_t q) {
    if (p_.grad_bias_sums_n) return add_row_sums(b, h, q);
    s_.block.begin = own_k_ * kTileKeys;
    s_.block.n = smaller(kTileKeys, p_.Mkv - s_.block.begin);
    const int64_t group = h % p_.G;
    s_.tile.place(p_, b, h / p_.G, group * p_.Mq + q * kTileQueries, (group + 1) * p_.Mq);
    if (s_.tile.seen.begin >= s_.block.begin + s_.block.n) return;
    if (s_.tile.seen.end <= s_.block.begin) return;
    s_.tile.load(p_, s_.rows);
    s_.block.load(p_, w_, s_.rows, b, h / p_.G);
    s_.gradients.template compute<false>(p_, w_, s_.block, s_.tile, 0, s_.block.n);
    for (int64_t j = 0; j < s_.block.n; ++j) {
      const Real* from = s_.gradients.grad_scores + j * kTileQueries;
      Real* to = s_.sum + j * kTileQueries;
      for (int64_t r = 0; r < s_.tile.n; ++r) to[r] += from[r];
    }
  }

  // Shifting all scores of a row shifts its LSE and no probability: its dS sum to its dLSE.
  void add_row_sums(int64_t b, int64_t h, int64_t q) {
    const int64_t first = q * kTileQueries;
    for (int64_t r = 0; r < smaller(kTileQueries, p_.Mq - first); ++r) {
      const Real lse = p_.lse.template at<Real>(b, h, first + r);
      if (lse == -kInfinity<Real>) continue;
      s_.sum[r] += 0 * lse;  // a row of NaN stays one
      if (p_.grad_lse) s_.sum[r] += p_.grad_lse.template at<Real>(b, h, first + r);
    }
  }

  void store() {
    const int64_t i = own_q_ * kTileQueries;
    const int64_t j = own_k_ * kTileKeys;
    int64_t rows = smaller(kTileQueries, p_.Mq - i);
    int64_t keys = smaller(kTileKeys, p_.Mkv - j);
    if (p_.grad_bias_sums_m) rows = sum_rows();
    if (p_.grad_bias_sums_n) keys = 1;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < keys; ++c) s_.row[c] = s_.sum[c * kTileQueries + r];
      const DType dtype = p_.grad_bias.dtype;
      char* to = p_.grad_bias.row(own_b_, own_h_, i + r) +
                 j * p_.grad_bias.stride_n * element_bytes(dtype);
      if (p_.grad_bias.stride_n == 1) {
        store_row<S>(to, dtype, s_.row, keys, Real(1));
        continue;
      }
      for (int64_t c = 0; c < keys; ++c) {
        store_row<S>(to + c * p_.grad_bias.stride_n * element_bytes(dtype), dtype, s_.row + c, 1,
                     Real(1));
      }
    }
  }

  // Sum over query rows or keys within the tile, into its first row or key; returns how many.
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
  const int64_t own_k_, own_q_, own_h_, own_b_;
};

template <class Op>
int64_t bias_gradient_scratch_bytes(const BackwardProblem& p) {
  Scratch scratch(nullptr);
  BiasGradientScratch<Op>(scratch, p, GradientWidths<Op>(p));
  return scratch.used();
}

template <class Op>
int64_t bias_gradient_workspace(const BackwardProblem& p, int workers) {
  if (!p.grad_bias) return 0;
  return busy_workers(workers, BiasTiling(p).tasks()) * bias_gradient_scratch_bytes<Op>(p);
}

template <class Op>
void bias_gradient(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
  struct Context {
    const BackwardProblem& p;
    GradientWidths<Op> widths;
    BiasTiling tiling;
    int64_t scratch_bytes;
    char* scratch;
  };
  Context context{p, GradientWidths<Op>(p), BiasTiling(p), bias_gradient_scratch_bytes<Op>(p),
                  static_cast<char*>(workspace)};
  runner.run(
      context.tiling.tasks(),
      [](int64_t task, int worker, void* opaque) {
        Context& c = *static_cast<Context*>(opaque);
        Scratch scratch(c.scratch + worker * c.scratch_bytes);
        BiasGradientScratch<Op> pieces(scratch, c.p, c.widths);
        BiasGradientTask<Op>(c.p, c.widths, c.tiling, pieces, task).run();
      },
      &context);
}

}  // namespace
}  // namespace attn::cpu
