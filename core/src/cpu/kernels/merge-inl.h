// Merging chunks of attention, forward and backward: each row by itself, read where it lies.
// A chunk whose weight is 0, since its lse is -infinity or nearly so, is not even read.
//
// With w_c = exp(lse_c - lse):  out = sum_c w_c out_c;  d out_c = w_c d out;
// d lse_c = w_c (d out . out_c - sum_c w_c d out . out_c + d lse).
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/arithmetic-inl.h"
#include "cpu/kernels/operand-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/tasks-inl.h"
#include "problem/merge_problem.h"

namespace attn::cpu {
namespace {

struct MergeRow {
  int64_t b, m, h;
};

// How rows fall into tiles, one per task: some queries of some heads.
template <class Op>
struct MergeTiling {
  using Real = typename Op::S::Real;
  static constexpr int64_t kQueries = 64 / sizeof(Real);  // as many lses as a cache line holds
  static constexpr int64_t kRows = 32 * kQueries;
  static constexpr int64_t kNumbers = kQueries * kMostMergeChunks;  // one for each chunk of a row

  int64_t queries, heads;
  int64_t query_tiles, head_tiles, tasks;

  explicit MergeTiling(const MergeProblem& p) {
    const int64_t rows = smaller(kRows, kNumbers / p.num_chunks / Op::S::kWidth * Op::S::kWidth);
    queries = larger(smaller(kQueries, p.M), 1);
    heads = larger(smaller(rows / queries, p.H), 1);
    query_tiles = (p.M + queries - 1) / queries;
    head_tiles = (p.H + heads - 1) / heads;
    tasks = p.B * query_tiles * head_tiles;
  }
};

// The rows of one task with a number for each of their chunks: its lse; when weighed, its weight.
template <class Op>
class MergeTile {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;
  using Tiling = MergeTiling<Op>;

  MergeTile(const MergeProblem& p, const Tiling& t, int64_t task)
      : p_(p),
        b_(task / t.head_tiles / t.query_tiles),
        first_query_(task / t.head_tiles % t.query_tiles * t.queries),
        first_head_(task % t.head_tiles * t.heads),
        queries_(smaller(t.queries, p.M - first_query_)),
        heads_(smaller(t.heads, p.H - first_head_)),
        stride_(round_up(queries_ * heads_, S::kWidth)) {
    for (int64_t c = 0; c < p.num_chunks; ++c) {
      Real* numbers = numbers_ + c * stride_;
      for (int64_t h = 0; h < heads_; ++h) load_lses(numbers + h * queries_, p.chunks[c].lse, h);
      for (int64_t r = queries_ * heads_; r < stride_; ++r) numbers[r] = 0;
    }
  }

  // Turns every row's lses into weights that add up to 1. An lse of -infinity gets the weight 0,
  // even where a row has no other.
  void weigh() {
    for (int64_t r = 0; r < stride_; r += S::kWidth) {
      weigh_rows(numbers_ + r, maxima_ + r, totals_ + r);
    }
  }

  // Calls f(row, its numbers) in the order in which an out has them.
  template <class F>
  void each_row(F&& f) {
    for (int64_t q = 0; q < queries_; ++q) {
      for (int64_t h = 0; h < heads_; ++h) {
        f(MergeRow{b_, first_query_ + q, first_head_ + h}, numbers_ + h * queries_ + q);
      }
    }
  }
  // From one chunk's number to the next one's.
  int64_t stride() const { return stride_; }

  // The lses of all chunks together, once they are weighed.
  void store_lses(const RowScalars& to) {
    for (int64_t r = 0; r < queries_ * heads_; ++r) maxima_[r] += natural_log(totals_[r]);
    store(maxima_, to);
  }
  void store_numbers(int64_t chunk, const RowScalars& to) { store(numbers_ + chunk * stride_, to); }

 private:
  // Of one head. Copied where they lie in a row: that issues its loads sooner than a loop does.
  void load_lses(Real* to, const RowScalars& x, int64_t h) const {
    const Real* from = &x.template at<Real>(b_, first_head_ + h, first_query_);
    if (x.stride_m == 1) {
      std::memcpy(to, from, static_cast<size_t>(queries_) * sizeof(Real));
      return;
    }
    for (int64_t q = 0; q < queries_; ++q) to[q] = from[q * x.stride_m];
  }

  void store(const Real* numbers, const RowScalars& to) const {
    for (int64_t h = 0; h < heads_; ++h) {
      Real* element = &to.template at<Real>(b_, first_head_ + h, first_query_);
      for (int64_t q = 0; q < queries_; ++q) element[q * to.stride_m] = numbers[h * queries_ + q];
    }
  }

  // A vector of rows.
  void weigh_rows(Real* numbers, Real* maximum, Real* total) {
    const Real* end = numbers + p_.num_chunks * stride_;
    auto most = S::set1(-kInfinity<Real>);
    for (Real* x = numbers; x != end; x += stride_) most = S::max(S::load(x), most);
    // With no chunk to refer to any finite reference serves: each weight is 2^-infinity, or NaN.
    const auto none = S::equal(most, S::set1(-kInfinity<Real>));
    const auto reference = S::select(none, S::set1(0), most);
    const auto log2e = S::set1(static_cast<Real>(kLog2E));
    auto sum = S::set1(0);
    for (Real* x = numbers; x != end; x += stride_) {
      const auto weight = S::exp2(S::mul(S::sub(S::load(x), reference), log2e));
      sum = S::add(sum, weight);
      S::store(x, weight);
    }
    S::store(maximum, most);
    S::store(total, sum);
    const auto empty = S::equal(sum, S::set1(0));
    const auto scale = S::select(empty, S::set1(0), S::div(S::set1(1), sum));
    for (Real* x = numbers; x != end; x += stride_) S::store(x, S::mul(S::load(x), scale));
  }

  static Real natural_log(Real x) {
    if constexpr (sizeof(Real) == sizeof(float)) {
      return __builtin_logf(x);
    } else {
      return __builtin_log(x);
    }
  }

  const MergeProblem& p_;
  const int64_t b_, first_query_, first_head_, queries_, heads_, stride_;
  alignas(64) Real numbers_[Tiling::kNumbers];  // [chunks, stride]; rows are [heads, queries]
  alignas(64) Real maxima_[Tiling::kRows];      // of each row's lses
  alignas(64) Real totals_[Tiling::kRows];  // of its weights before they were made to add up to 1
};

template <class Op>
struct MergeForward {
  using Problem = MergeForwardProblem;
  using S = typename Op::S;
  using Real = typename S::Real;

  static void run(const Problem& p, MergeTile<Op>& tile) {
    if (p.lse) tile.store_lses(p.lse);
    with_source<Op>(p.dtype, [&]<DType kSource>() {
      tile.each_row([&](MergeRow at, const Real* weights) {
        merge_row<kSource>(p, at, weights, tile.stride());
      });
    });
  }

 private:
  // What a chunk adds to a row.
  struct Part {
    const char* row;
    Real weight;
  };

  template <DType kSource>
  static void merge_row(const Problem& p, MergeRow at, const Real* weights, int64_t stride) {
    Part parts[kMostMergeChunks];
    int64_t n = 0;
    for (int64_t c = 0; c < p.num_chunks; ++c) {
      const HeadRows& x = p.chunks[c].out;
      const int64_t place = at.b * x.stride_b + at.m * x.stride_m + at.h * x.stride_h;
      parts[n] = {x.data + place * element_bytes(kSource), weights[c * stride]};
      n += parts[n].weight != Real(0);  // a chunk without weight may hold NaN
    }
    char* to = p.out.row(at.b, at.m, at.h);
    constexpr int64_t kMany = 8 * S::kWidth, kFew = 2 * S::kWidth;
    int64_t c = 0;
    for (; c + kMany <= p.Kv; c += kMany) merge_columns<kSource, 8>(p, parts, n, to, c);
    for (; c + kFew <= p.Kv; c += kFew) merge_columns<kSource, 2>(p, parts, n, to, c);
    for (; c < p.Kv; c += S::kWidth) merge_last_columns<kSource>(p, parts, n, to, c);
  }

  // Whole vectors of a row, from column `begin` on.
  template <DType kSource, int64_t kVectors>
  static void merge_columns(const Problem& p, const Part* parts, int64_t n, char* to,
                            int64_t begin) {
    typename S::Vec sums[kVectors];
    for (auto& sum : sums) sum = S::set1(0);
    for (const Part* part = parts; part != parts + n; ++part) {
      const auto weight = S::set1(part->weight);
      const char* from = part->row + begin * element_bytes(kSource);
      // Or GCC keeps a sum of offsets for each vector, in memory, and reads lines out of order.
      asm("" : "+r"(from));
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[v] =
            S::fma(load_elements<S, kSource, true>(from, v * S::kWidth, p.Kv), weight, sums[v]);
      }
    }
    to += begin * element_bytes(p.out.dtype);
    store_vectors<S>(to, p.out.dtype, kVectors, [&](int64_t v) { return sums[v]; });
  }

  // The last vector, which may reach past the end.
  template <DType kSource>
  static void merge_last_columns(const Problem& p, const Part* parts, int64_t n, char* to,
                                 int64_t begin) {
    auto sum = S::set1(0);
    for (const Part* part = parts; part != parts + n; ++part) {
      sum = S::fma(load_elements<S, kSource>(part->row, begin, p.Kv), S::set1(part->weight), sum);
    }
    Real merged[S::kWidth];
    S::store(merged, sum);
    store_row<S>(to + begin * element_bytes(p.out.dtype), p.out.dtype, merged,
                 smaller(S::kWidth, p.Kv - begin), Real(1));
  }
};

template <class Op>
struct MergeBackward {
  using Problem = MergeBackwardProblem;
  using S = typename Op::S;
  using Real = typename S::Real;

  static void run(const Problem& p, MergeTile<Op>& tile) {
    tile.each_row(
        [&](MergeRow at, Real* weights) { differentiate_row(p, at, weights, tile.stride()); });
    for (int64_t c = 0; c < p.num_chunks; ++c) {
      if (p.chunks[c].grad_lse) tile.store_numbers(c, p.chunks[c].grad_lse);
    }
  }

 private:
  static constexpr int64_t kColumns = 512;  // of a row, worked on at a time

  // Writes the gradients of the chunks' outs; those of their lses take the place of the weights.
  static void differentiate_row(const Problem& p, MergeRow at, Real* weights, int64_t stride) {
    Real products[kMostMergeChunks];  // d out . out_c
    for (int64_t c = 0; c < p.num_chunks; ++c) products[c] = 0;
    for (int64_t begin = 0; begin < p.Kv; begin += kColumns) {
      const int64_t n = smaller(kColumns, p.Kv - begin);
      const auto columns_of = [&](const HeadRows& x) {
        return x.row(at.b, at.m, at.h) + begin * element_bytes(x.dtype);
      };
      alignas(64) Real grad[kColumns];
      load_row(grad, columns_of(p.grad_out), p.grad_out.dtype, n);
      for (int64_t c = 0; c < p.num_chunks; ++c) {
        const MergeChunk& chunk = p.chunks[c];
        const Real weight = weights[c * stride];
        if (chunk.grad_out) store_scaled(columns_of(chunk.grad_out), p.dtype, grad, n, weight);
        if (p.wants_grad_lses && weight != Real(0)) {
          products[c] += dot_with_row(grad, columns_of(chunk.out), p.dtype, n);
        }
      }
    }
    if (!p.wants_grad_lses) return;
    Real shift = p.grad_lse ? p.grad_lse.template at<Real>(at.b, at.h, at.m) : Real(0);
    for (int64_t c = 0; c < p.num_chunks; ++c) shift -= weights[c * stride] * products[c];
    for (int64_t c = 0; c < p.num_chunks; ++c) {
      Real& number = weights[c * stride];
      if (number != Real(0)) number *= products[c] + shift;
    }
  }

  // n elements, and zeros to fill the last vector.
  static void load_row(Real* to, const char* row, DType dtype, int64_t n) {
    with_source<Op>(dtype, [&]<DType kSource>() {
      for (int64_t c = 0; c < n; c += S::kWidth) {
        S::store(to + c, load_elements<S, kSource>(row, c, n));
      }
    });
  }

  // An empty chunk's gradient is 0, whatever the one that comes in.
  static void store_scaled(char* row, DType dtype, const Real* from, int64_t n, Real weight) {
    if (weight == Real(0)) {
      std::memset(row, 0, static_cast<size_t>(n * element_bytes(dtype)));
    } else {
      store_row<S>(row, dtype, from, n, weight);
    }
  }

  static Real dot_with_row(const Real* x, const char* row, DType dtype, int64_t n) {
    return with_source<Op>(dtype, [&]<DType kSource>() {
      auto sum = S::set1(0);
      int64_t c = 0;
      for (; c + S::kWidth <= n; c += S::kWidth) {
        sum = S::fma(load_elements<S, kSource, true>(row, c, n), S::load(x + c), sum);
      }
      if (c < n) sum = S::fma(load_elements<S, kSource>(row, c, n), S::load(x + c), sum);
      return S::reduce_add(sum);
    });
  }
};

// Runs every tile; no row depends on another, so that the tiling changes no bit.
template <class Op, template <class> class Direction>
void run_merge(const typename Direction<Op>::Problem& p, const TaskRunner& runner) {
  const MergeTiling<Op> tiling(p);
  run_tasks(runner, tiling.tasks, [&](int64_t task, int) {
    MergeTile<Op> tile(p, tiling, task);
    tile.weigh();
    Direction<Op>::run(p, tile);
  });
}

}  // namespace
}  // namespace attn::cpu
