// What the backward passes read: a block of keys and values, and a tile of query rows with their
// output gradients, packed as operands.
#pragma once

#include <cstdint>

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/pack-inl.h"
#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scores-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

constexpr int64_t kTileQueries = 128;  // query rows of a tile
constexpr int64_t kTileKeys = 128;     // keys of a tile; both are whole panels

template <class Op>
struct GradientWidths {
  int64_t key_units;      // units of a packed query or key row
  int64_t value_units;    // units of a packed value or output row
  int64_t key_columns;    // K in whole vectors
  int64_t value_columns;  // Kv in whole vectors

  explicit GradientWidths(const Problem& p)
      : key_units(row_units<Op>(p.K)),
        value_units(row_units<Op>(p.Kv)),
        key_columns(round_up(p.K, Op::S::kWidth)),
        value_columns(round_up(p.Kv, Op::S::kWidth)) {}
};

// A block of keys and values as left operands, loaded once for many query tiles.
template <class Op>
struct KeyBlock {
  int64_t begin = 0;
  int64_t n = 0;
  typename Op::Unit* keys;    // [n, key_units]
  typename Op::Unit* values;  // [n, value_units]

  KeyBlock(Scratch& scratch, const GradientWidths<Op>& w, int64_t capacity)
      : keys(scratch.take<typename Op::Unit>(capacity * w.key_units)),
        values(scratch.take<typename Op::Unit>(capacity * w.value_units)) {}

  void load(const Problem& p, const GradientWidths<Op>& w, const char** rows,
            const Sequence& sequence, int64_t key_head) {
    key_rows(rows, p.key, sequence, key_head, begin, n);
    pack_rows<Op>(keys, w.key_units, rows, p.key.dtype, n, p.K);
    key_rows(rows, p.value, sequence, key_head, begin, n);
    pack_rows<Op>(values, w.value_units, rows, p.value.dtype, n, p.Kv);
  }
};

// rowsum(dO * O) - dLSE of one query row.
template <class S>
typename S::Real row_delta(const BackwardProblem& p, const Sequence& sequence, QueryRow at,
                           const char* grad_out_row) {
  using Real = typename S::Real;
  const Real sum = dot_rows<S>(query_row_of(p.out, sequence, at), p.out.dtype, grad_out_row,
                               p.grad_out.dtype, p.Kv);
  return p.grad_lse ? sum - row_scalar<Real>(p.grad_lse, sequence, at) : sum;
}

// Beyond this a float32 lse may be off by more than 2^-12, and a probability by as large a part.
constexpr double kLargeLse = 4096;

template <class Real>
bool is_large(Real lse) {
  const Real size = lse < 0 ? -lse : lse;
  return size > Real(kLargeLse) && size < kInfinity<Real>;
}

// A row's lse to base 2 as the sum of two numbers: P = 2^((score - maximum) - rest).
template <class Real>
struct SplitLse {
  Real maximum;
  Real rest;  // 0 unless the lse is large
};

// Of a row that sees keys; large ones were split before.
template <class Real>
SplitLse<Real> split_lse(const BackwardProblem& p, const Sequence& sequence, QueryRow at) {
  const Real lse = row_scalar<Real>(p.lse, sequence, at);
  if (!is_large(lse)) return {lse * static_cast<Real>(kLog2E), 0};
  return {row_scalar<Real>(p.lse_maximum, sequence, at),
          row_scalar<Real>(p.lse_rest, sequence, at)};
}

// What one query row adds to its head's dSink: dS of a key whose value is 0.
template <class S>
typename S::Real grad_sink_of_row(const BackwardProblem& p, const Sequence& sequence, QueryRow at) {
  using Real = typename S::Real;
  if (row_scalar<Real>(p.lse, sequence, at) == -kInfinity<Real>) return 0;
  const SplitLse<Real> lse = split_lse<Real>(p, sequence, at);
  const Real sink = read_score<Real>(p.sink.at(at.h), p.sink.dtype);
  Real probability[S::kWidth];
  S::store(probability,
           S::exp2(S::set1(sink * static_cast<Real>(kLog2E) - lse.maximum - lse.rest)));
  return -probability[0] * row_delta<S>(p, sequence, at, query_row_of(p.grad_out, sequence, at));
}

// A tile of query rows: Q and dO as right operands, and what softmax's gradient needs per row.
template <class Op>
struct QueryTile {
  using S = typename Op::S;
  using Real = typename S::Real;
  using Unit = typename Op::Unit;

  Sequence sequence;
  int64_t key_head = 0, first = 0, n = 0;
  KeyRange seen;           // the union of the rows' ranges
  KeyRange* ranges;        // [kTileQueries]
  Unit* queries;           // columns are query rows
  Unit* grad_out;          // columns are query rows
  Unit* queries_stacked;   // depth is query rows
  Unit* grad_out_stacked;  // depth is query rows
  bool queries_finite = true, grad_out_finite = true;
  // [kTileQueries], split; the maximum is +infinity where nothing is seen: P is 0 there.
  Real* lse_maximum;
  Real* lse_rest;
  bool has_large_lse = false;
  Real* delta;  // [kTileQueries]: rowsum(dO * O) - dLSE

  QueryTile(Scratch& scratch, const Problem& p, const GradientWidths<Op>& w) {
    ranges = scratch.take<KeyRange>(kTileQueries);
    queries = scratch.take<Unit>(panel_units<Op>(units_of<Op>(p.K), kTileQueries));
    grad_out = scratch.take<Unit>(panel_units<Op>(units_of<Op>(p.Kv), kTileQueries));
    queries_stacked =
        scratch.take<Unit>(panel_units<Op>(units_of<Op>(kTileQueries), w.key_columns));
    grad_out_stacked =
        scratch.take<Unit>(panel_units<Op>(units_of<Op>(kTileQueries), w.value_columns));
    lse_maximum = scratch.take<Real>(kTileQueries);
    lse_rest = scratch.take<Real>(kTileQueries);
    delta = scratch.take<Real>(kTileQueries);
  }

  // Chooses up to kTileQueries of the rows [first, end) of a key head and finds what they see.
  void place(const Problem& p, const Sequence& sequence_, int64_t key_head_, int64_t first_,
             int64_t end) {
    sequence = sequence_, key_head = key_head_, first = first_;
    n = smaller(kTileQueries, end - first);
    seen = {sequence.Mkv, 0};
    for (int64_t r = 0; r < n; ++r) {
      ranges[r] = sequence.keys_of(query(p, r).i);
      if (ranges[r].begin >= ranges[r].end) continue;
      seen = {smaller(seen.begin, ranges[r].begin), larger(seen.end, ranges[r].end)};
    }
    if (seen.begin >= seen.end) seen = {0, 0};
  }

  QueryRow query(const Problem& p, int64_t r) const {
    return query_row(p, sequence, key_head, first + r);
  }

  // Whether any row may see any of the keys: by the bands' union, and by the blocks.
  bool sees(const Problem& p, int64_t begin, int64_t end) const {
    if (seen.begin >= end || seen.end <= begin) return false;
    bool any = !p.blocks;
    for (int64_t r = 0; r < n && !any;) {
      const QueryRow at = query(p, r);
      any = sees_blocks(p.blocks, at.h, at.i, {begin, end});
      r += smaller(p.blocks.size - at.i % p.blocks.size, sequence.Mq - at.i);
    }
    return any;
  }

  // What computing scores takes.
  void load_queries(const Problem& p, const char** rows) {
    query_rows(rows, p, p.query, sequence, key_head, first, n);
    queries_finite = pack_transposed<Op>(queries, rows, p.query.dtype, n, p.K);
  }

  // What computing P and dS takes.
  void load(const BackwardProblem& p, const char** rows) {
    load_queries(p, rows);
    query_rows(rows, p, p.grad_out, sequence, key_head, first, n);
    for (int64_t r = 0; r < kOutputsAhead; ++r) prefetch_output(p, r);
    grad_out_finite = pack_transposed<Op>(grad_out, rows, p.grad_out.dtype, n, p.Kv);
    has_large_lse = false;
    for (int64_t r = 0; r < n; ++r) {
      prefetch_output(p, r + kOutputsAhead);
      load_row(p, r, rows[r]);
    }
    for (int64_t r = n; r < kTileQueries; ++r) {
      lse_maximum[r] = kInfinity<Real>;
      lse_rest[r] = delta[r] = 0;
    }
  }

  // What multiplying with P^T and dS^T takes.
  void load_stacked(const BackwardProblem& p, const char** rows) {
    query_rows(rows, p, p.query, sequence, key_head, first, n);
    pack_stacked<Op>(queries_stacked, rows, p.query.dtype, n, p.K);
    query_rows(rows, p, p.grad_out, sequence, key_head, first, n);
    pack_stacked<Op>(grad_out_stacked, rows, p.grad_out.dtype, n, p.Kv);
  }

 private:
  static constexpr int64_t kOutputsAhead = 16;  // from the row loaded to the one prefetched

  // Of row r, if there is one. Always inlined: see prefetch-inl.h.
  [[gnu::always_inline]] void prefetch_output(const BackwardProblem& p, int64_t r) const {
    if (r >= n) return;
    prefetch_row_to_read(query_row_of(p.out, sequence, query(p, r)),
                         p.Kv * element_bytes(p.out.dtype));
  }

  void load_row(const BackwardProblem& p, int64_t r, const char* grad_out_row) {
    const QueryRow at = query(p, r);
    const Real natural = row_scalar<Real>(p.lse, sequence, at);
    const SplitLse<Real> lse = split_lse<Real>(p, sequence, at);
    lse_maximum[r] = natural == -kInfinity<Real> ? kInfinity<Real> : lse.maximum;
    lse_rest[r] = lse.rest;
    has_large_lse |= is_large(natural);
    delta[r] = row_delta<S>(p, sequence, at, grad_out_row);
  }
};

}  // namespace
}  // namespace attn::cpu
