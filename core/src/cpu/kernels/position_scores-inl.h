// Scores of relative positions: features of lines times the rows of the table that they reach.
//
// A few lines at a time meet few more rows than they have columns, and all of them in one product:
// each line finds its own numbers one place further left than the line before.
#pragma once

#include <cstdint>

#include "cpu/kernels/distance_table-inl.h"
#include "cpu/kernels/multiply-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

// Positions are multiplied as Reals, whatever the operands of the problem.
template <class S>
using PositionOperand = SingleOperand<S>;

// Lines that share one product.
template <class S>
constexpr int64_t kPositionLines = 4 * S::kTileRows;

// Most rows of a table that so many lines and columns reach, in whole panels from any row on.
template <class S>
constexpr int64_t reached_rows(int64_t lines, int64_t columns) {
  return round_up(lines + columns - 1, kPanel<PositionOperand<S>>) + kPanel<PositionOperand<S>>;
}

// The features of some lines of one head as a left operand, and which lines those are.
template <class S>
struct PositionFeatures {
  using Real = typename S::Real;
  Real* lines;  // [capacity, stride]
  int64_t stride;
  int64_t b = -1, h = -1, begin = 0, n = 0;

  PositionFeatures(Scratch& scratch, int64_t capacity, int64_t width)
      : lines(scratch.take<Real>(capacity * round_up(width, S::kWidth))),
        stride(round_up(width, S::kWidth)) {}

  // Loads those of [begin, begin + n), unless they are there; `rows` has room for as many pointers.
  void load(const PositionTerm& term, const char** rows, int64_t b_, int64_t h_, int64_t begin_,
            int64_t n_) {
    if (b == b_ && h == h_ && begin == begin_ && n == n_) return;
    b = b_, h = h_, begin = begin_, n = n_;
    for (int64_t line = 0; line < n; ++line) rows[line] = term.features.row(b, begin + line, h);
    pack_rows<PositionOperand<S>>(lines, stride, rows, term.features.dtype, n, term.width);
  }
};

// Rows of one head's table, as a right operand whose columns they are.
template <class S>
struct TableWindow {
  using Real = typename S::Real;
  Real* panels;
  const char** pointers;
  int64_t h = -1;
  KeyRange rows{0, 0};

  TableWindow(Scratch& scratch, int64_t capacity, int64_t width)
      : panels(scratch.take<Real>(panel_units<PositionOperand<S>>(width, capacity))),
        pointers(scratch.take<const char*>(capacity)) {}

  // Packs those of `wanted`, unless they are there.
  void cover(const DistanceTable& table, int64_t h_, KeyRange wanted) {
    if (h == h_ && rows.begin <= wanted.begin && wanted.end <= rows.end) return;
    h = h_, rows = wanted;
    table.rows_of(pointers, h, rows);
    pack_transposed<PositionOperand<S>>(panels, pointers, table.term.table.dtype,
                                        rows.end - rows.begin, table.width);
  }
};

// The scores of one side's term, unscaled.
template <class S>
class PositionScores {
 public:
  using Real = typename S::Real;

  TableWindow<S> window;

  // For windows of up to `most_lines` lines and `most_columns` columns; a width of 0: none.
  PositionScores(Scratch& scratch, int64_t most_lines, int64_t most_columns, int64_t width)
      : window(scratch, width > 0 ? reached_rows<S>(most_lines, most_columns) : 0, width),
        stride_(width > 0 ? reached_rows<S>(kPositionLines<S>, most_columns) : 0),
        products_(scratch.take<Real>(width > 0 ? kPositionLines<S> * stride_ + S::kWidth : 0)),
        line_(scratch.take<Real>(width > 0 ? most_columns + S::kWidth : 0)) {}

  // Calls visit(line, scores) for each of the lines, whose features these are, with its scores in
  // the columns, and unread numbers to the end of the last vector.
  template <class F>
  void each_line(const DistanceTable& table, int64_t h, const Real* features, int64_t stride,
                 KeyRange lines, KeyRange columns, F&& visit) {
    const int64_t n = columns.end - columns.begin;
    for (int64_t begin = lines.begin; n > 0 && begin < lines.end; begin += kPositionLines<S>) {
      const KeyRange some{begin, smaller(begin + kPositionLines<S>, lines.end)};
      const int64_t from = multiply_lines(table, h, features + (begin - lines.begin) * stride,
                                          stride, some, columns);
      for (int64_t line = some.begin; line < some.end; ++line) {
        visit(line, read_line<S>(line_, products_ + (line - begin) * stride_, from, table,
                                 table.row_at(line, columns.begin), n));
      }
    }
  }

 private:
  // Returns the first row of the table that has products.
  int64_t multiply_lines(const DistanceTable& table, int64_t h, const Real* features,
                         int64_t stride, KeyRange lines, KeyRange columns) {
    const KeyRange reach = table.reach(lines, columns);
    window.cover(table, h, reach);
    constexpr int64_t kColumns = kPanel<PositionOperand<S>>;
    const int64_t offset = (reach.begin - window.rows.begin) / kColumns * kColumns;
    const int64_t from = window.rows.begin + offset;
    Product<PositionOperand<S>> product;
    product.a = features;
    product.a_stride = stride;
    product.b = window.panels + offset * table.width;
    product.b_depth = product.depth = table.width;
    product.c = products_;
    product.c_stride = stride_;
    product.rows = lines.end - lines.begin;
    product.b_columns = window.rows.end - from;
    product.columns = reach.end - from;
    multiply_by_vectors(product);
    return from;
  }

  int64_t stride_;
  Real* products_;  // [kPositionLines, stride_]
  Real* line_;      // one line's scores
};

// Adds factor * scores to n biases. Those that exclude a key stay: its features may be NaN.
template <class S>
void add_position_scores(typename S::Real* to, const typename S::Real* scores, int64_t n,
                         typename S::Real factor) {
  using Real = typename S::Real;
  const auto excluded = S::set1(-kInfinity<Real>);
  int64_t c = 0;
  for (; c + S::kWidth <= n; c += S::kWidth) {
    const auto bias = S::load(to + c);
    const auto sum = S::fma(S::load(scores + c), S::set1(factor), bias);
    S::store(to + c, S::select(S::equal(bias, excluded), excluded, sum));
  }
  for (; c < n; ++c) {
    if (to[c] != -kInfinity<Real>) to[c] += factor * scores[c];
  }
}

// Calls visit(h, queries, row) for each head that the rows [begin, end) of a key head belong to:
// its queries among them, and the place of the first one from `begin` on.
template <class F>
void each_head(const Problem& p, const Sequence& sequence, int64_t key_head, KeyRange rows,
               F&& visit) {
  for (int64_t r = rows.begin; r < rows.end;) {
    const QueryRow at = query_row(p, sequence, key_head, r);
    const int64_t n = smaller(rows.end - r, sequence.Mq - at.i);
    visit(at.h, KeyRange{at.i, at.i + n}, r - rows.begin);
    r += n;
  }
}

}  // namespace
}  // namespace attn::cpu
