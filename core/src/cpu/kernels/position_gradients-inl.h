// The gradients of positions' features and tables, from the gradients of their scores.
//
// Lines of score gradients laid along the rows of the table that they meet make a band: it times
// the table is the gradient of the features, its transpose times the features that of the table.
#pragma once

#include <cstdint>

#include "cpu/kernels/position_scores-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

// One side's, for lines of one head at a time.
template <class S>
class PositionGradients {
 public:
  using Real = typename S::Real;
  using P = PositionOperand<S>;

  // For tiles of up to `most_lines` lines and `most_columns` columns.
  PositionGradients(Scratch& scratch, const PositionTerm& term, bool wants_features,
                    bool wants_table, int64_t most_lines, int64_t most_columns)
      : wants_features_(wants_features), wants_table_(wants_table) {
    if (!wanted()) return;
    const int64_t rows = most_lines + most_columns;
    columns_ = round_up(term.width, S::kWidth);
    stride_ = round_up(kPositionLines<S> + most_columns, S::kWidth);
    band_ = scratch.take<Real>(kPositionLines<S> * stride_);
    table_ = scratch.take<Real>(wants_features ? panel_units<P>(rows, columns_) : 0);
    features_ = scratch.take<Real>(wants_table ? panel_units<P>(most_lines, columns_) : 0);
    pointers_ = scratch.take<const char*>(rows);
  }

  bool wanted() const { return wants_features_ || wants_table_; }

  // Adds the gradients from those of scores, `grads`, a row of columns for each line. A line's
  // features have their gradient in a row of grad_features, set unless it `accumulates`; that of
  // the table begins at row `first_row`, in rows of columns in whole vectors.
  void add(const PositionTerm& term, const DistanceTable& table, int64_t b, int64_t h,
           KeyRange lines, KeyRange columns, const Real* grads, int64_t grads_stride,
           Real* grad_features, int64_t features_stride, bool accumulates, Real* grad_table,
           int64_t first_row) {
    if (lines.begin >= lines.end || columns.begin >= columns.end) return;
    load(term, table, b, h, lines, columns);
    for (int64_t begin = lines.begin; begin < lines.end; begin += kPositionLines<S>) {
      const KeyRange some{begin, smaller(begin + kPositionLines<S>, lines.end)};
      const int64_t offset = begin - lines.begin;
      const KeyRange reach = table.reach(some, columns);
      for (int64_t line = begin; line < some.end; ++line) {
        write_line<S>(band_ + (line - begin) * stride_, reach.begin, reach.end - reach.begin, table,
                      table.row_at(line, columns.begin),
                      grads + (line - lines.begin) * grads_stride, columns.end - columns.begin);
      }
      if (wants_features_) {
        multiply_table(reach, some.end - begin, term.width,
                       grad_features + offset * features_stride, features_stride, accumulates);
      }
      if (wants_table_) {
        multiply_features(reach, {offset, offset + some.end - begin}, lines.end - lines.begin,
                          term.width, grad_table + (reach.begin - first_row) * columns_);
      }
    }
  }

 private:
  void load(const PositionTerm& term, const DistanceTable& table, int64_t b, int64_t h,
            KeyRange lines, KeyRange columns) {
    if (wants_features_) {
      rows_ = table.reach(lines, columns);
      table.rows_of(pointers_, h, rows_);
      table_finite_ =
          pack_stacked<P>(table_, pointers_, term.table.dtype, rows_.end - rows_.begin, term.width);
    }
    if (wants_table_) {
      const int64_t n = lines.end - lines.begin;
      for (int64_t line = 0; line < n; ++line) {
        pointers_[line] = term.features.row(b, lines.begin + line, h);
      }
      features_finite_ = pack_stacked<P>(features_, pointers_, term.features.dtype, n, term.width);
    }
  }

  // grad_features = band table, or += it.
  void multiply_table(KeyRange reach, int64_t lines, int64_t width, Real* grad_features,
                      int64_t features_stride, bool accumulates) {
    Product<P> product;
    product.a = band_;
    product.a_stride = stride_;
    product.b = table_;
    product.b_depth = rows_.end - rows_.begin;
    product.b_begin = reach.begin - rows_.begin;
    product.c = grad_features;
    product.c_stride = features_stride;
    product.rows = lines;
    product.columns = product.b_columns = width;
    product.depth = reach.end - reach.begin;
    product.accumulate = accumulates;
    product.is_finite = table_finite_;
    product.skip_zeros = true;
    multiply_by_vectors(product);
  }

  // grad_table += band^T features.
  void multiply_features(KeyRange reach, KeyRange lines, int64_t all_lines, int64_t width,
                         Real* grad_table) {
    Product<P> product;
    product.a = band_;
    product.a_stride = stride_;
    product.b = features_;
    product.b_depth = all_lines;
    product.b_begin = lines.begin;
    product.c = grad_table;
    product.c_stride = columns_;
    product.rows = reach.end - reach.begin;
    product.columns = product.b_columns = width;
    product.depth = lines.end - lines.begin;
    product.accumulate = true;
    product.is_finite = features_finite_;
    product.skip_zeros = true;
    multiply_by_vectors<P, true>(product);
  }

  bool wants_features_, wants_table_;
  int64_t columns_ = 0;       // the width in whole vectors
  int64_t stride_ = 0;        // of the band
  Real* band_ = nullptr;      // [kPositionLines, stride_]
  Real* table_ = nullptr;     // right operand: depth is the rows in rows_
  Real* features_ = nullptr;  // right operand: depth is lines
  const char** pointers_ = nullptr;
  KeyRange rows_;
  bool table_finite_ = true, features_finite_ = true;
};

}  // namespace
}  // namespace attn::cpu
