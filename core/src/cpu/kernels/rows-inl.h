// Rows of the problem as the kernels walk them.
//
// The G query heads that share a key head are folded: row r of (sequence, key head) is query r % Mq
// of head r / Mq in the group, so that few queries with many heads still fill a tile.
#pragma once

#include <cstdint>

#include "problem/problem.h"

namespace attn::cpu {
namespace {

// More query rows per key head than this repay packing the keys.
constexpr int64_t kDecodeRows = 16;

inline bool is_decode(const Problem& p, const Sequence& sequence) {
  return p.G * sequence.Mq <= kDecodeRows;
}

// In a row that sees no more keys than this, roundings to 16 bits do not average out: their
// residuals are multiplied, too.
constexpr int64_t kFewKeys = 32;

inline bool sees_few(const KeyRange& seen) { return seen.end - seen.begin <= kFewKeys; }

struct QueryRow {
  int64_t h;  // query head
  int64_t i;  // query
};

inline QueryRow query_row(const Problem& p, const Sequence& sequence, int64_t key_head, int64_t r) {
  const int64_t group = p.G == 1 ? 0 : r / sequence.Mq;  // a division takes as long as a short row
  return {key_head * p.G + group, r - group * sequence.Mq};
}

// The union of the key ranges of all queries.
inline KeyRange keys_of_all(const Sequence& sequence) {
  if (sequence.Mq == 0) return {0, 0};
  const int64_t last = sequence.Mq - 1;
  return {sequence.keys_of(0).begin, sequence.keys_of(last).end};
}

// Writes where n rows lie that follow each other, the first of them at `row`.
inline void rows_from(const char** rows, const HeadRows& x, const char* row, int64_t n) {
  const int64_t stride = x.stride_m * element_bytes(x.dtype);
  for (int64_t r = 0; r < n; ++r) rows[r] = row + r * stride;
}

inline void key_rows(const char** rows, const HeadRows& x, const Sequence& sequence,
                     int64_t key_head, int64_t begin, int64_t n) {
  for (int64_t j = 0; j < n;) {
    const int64_t run = sequence.keys_in_a_row(begin + j, n - j);
    rows_from(rows + j, x, x.row(sequence.b, sequence.key_row(begin + j), key_head), run);
    j += run;
  }
}

inline char* query_row_of(const HeadRows& x, const Sequence& sequence, QueryRow at) {
  return x.row(sequence.b, sequence.q_begin + at.i, at.h);
}

inline void query_rows(const char** rows, const Problem& p, const HeadRows& x,
                       const Sequence& sequence, int64_t key_head, int64_t begin, int64_t n) {
  for (int64_t r = 0; r < n;) {
    const QueryRow at = query_row(p, sequence, key_head, begin + r);
    const int64_t run = smaller(sequence.Mq - at.i, n - r);
    rows_from(rows + r, x, query_row_of(x, sequence, at), run);
    r += run;
  }
}

template <class Real>
Real& row_scalar(const RowScalars& x, const Sequence& sequence, QueryRow at) {
  return x.at<Real>(sequence.b, at.h, sequence.q_begin + at.i);
}

// Calls f(begin, end) for the query rows that no sequence owns.
template <class F>
void each_query_outside_sequences(const Problem& p, F&& f) {
  f(int64_t{0}, int64_t{p.sequences.q_start[0]});
  f(int64_t{p.sequences.q_start[p.sequences.count]}, p.Mq);
}

}  // namespace
}  // namespace attn::cpu
