// A table of positions as the lines of a tile meet it, and lines laid along its rows.
//
// A line is a query and its columns are keys, or a line is a key and its columns are queries: then
// the table is read from its last row to its first, so that rows ascend along every line.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/arithmetic-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

// Line a meets row clamp(b - a + zero, 0, rows - 1) in column b.
struct DistanceTable {
  const PositionTerm& term;
  int64_t rows, width, zero;
  bool mirrored;

  DistanceTable(const Positions& positions, bool of_keys, const Sequence& sequence)
      : term(of_keys ? positions.of_keys : positions.of_queries),
        rows(term.num_distances),
        width(term.width),
        zero(of_keys ? rows - 1 - positions.zero_row + sequence.diagonal
                     : positions.zero_row - sequence.diagonal),
        mirrored(of_keys) {}

  // Before it is clamped.
  int64_t row_at(int64_t line, int64_t column) const { return column - line + zero; }

  // The rows that any of the lines meets in any of the columns, of both of which there are some.
  KeyRange reach(KeyRange lines, KeyRange columns) const {
    return {clamp_to(row_at(lines.end - 1, columns.begin), rows - 1),
            clamp_to(row_at(lines.begin, columns.end - 1), rows - 1) + 1};
  }

  // Row r in the order of lines, in the table or in another one laid out alike.
  char* row(const HeadRows& of, int64_t h, int64_t r) const {
    return of.row(0, term.table_row(mirrored ? rows - 1 - r : r), h);
  }

  void rows_of(const char** pointers, int64_t h, KeyRange range) const {
    for (int64_t r = range.begin; r < range.end; ++r) {
      pointers[r - range.begin] = row(term.table, h, r);
    }
  }

  // Of n columns, the first of which meets row `first` before it is clamped: those before the
  // range meet row 0, those from its end on the last row.
  KeyRange inner_columns(int64_t first, int64_t n) const {
    return {clamp_to(-first, n), clamp_to(rows - first, n)};
  }
};

template <class S>
void fill(typename S::Real* to, int64_t n, typename S::Real number) {
  for (int64_t c = 0; c < n; c += S::kWidth) S::store(to + c, S::set1(number));
}

template <class S>
typename S::Real sum_of(const typename S::Real* x, int64_t n) {
  auto sums = S::set1(0);
  int64_t c = 0;
  for (; c + S::kWidth <= n; c += S::kWidth) sums = S::add(sums, S::load(x + c));
  typename S::Real sum = S::reduce_add(sums);
  for (; c < n; ++c) sum += x[c];
  return sum;
}

// Returns a line's n numbers, from the numbers of the rows from `from` on: those themselves, or
// with the ends of the table repeated, in `to`. Both have room for a vector more.
template <class S, class Real = typename S::Real>
const Real* read_line(Real* to, const Real* by_row, int64_t from, const DistanceTable& table,
                      int64_t first, int64_t n) {
  const KeyRange inner = table.inner_columns(first, n);
  const Real* at = by_row + (first - from);
  if (inner.begin == 0 && inner.end == n) return at;
  if (inner.begin > 0) fill<S>(to, inner.begin, by_row[-from]);
  if (inner.begin < inner.end) {
    std::memcpy(to + inner.begin, at + inner.begin,
                static_cast<size_t>(inner.end - inner.begin) * sizeof(Real));
  }
  if (inner.end < n) fill<S>(to + inner.end, n - inner.end, by_row[table.rows - 1 - from]);
  return to;
}

// The transpose of read_line: writes what each of the rows [from, from + width) got from a line.
template <class S, class Real = typename S::Real>
void write_line(Real* by_row, int64_t from, int64_t width, const DistanceTable& table,
                int64_t first, const Real* line, int64_t n) {
  const KeyRange inner = table.inner_columns(first, n);
  std::memset(by_row, 0, static_cast<size_t>(width) * sizeof(Real));
  if (inner.begin < inner.end) {
    std::memcpy(by_row + (first - from) + inner.begin, line + inner.begin,
                static_cast<size_t>(inner.end - inner.begin) * sizeof(Real));
  }
  if (inner.begin > 0) by_row[-from] += sum_of<S>(line, inner.begin);
  if (inner.end < n) {
    by_row[table.rows - 1 - from] += sum_of<S>(line + inner.end, n - inner.end);
  }
}

}  // namespace
}  // namespace attn::cpu
