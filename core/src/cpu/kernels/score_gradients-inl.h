// Scores and their gradients, a tile at a time, for the passes that read keys in tiles of their
// own.
#pragma once

#include <cstdint>

#include "cpu/kernels/gradient_tile-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

// A tile of keys, a tile of query rows, and what they make.
template <class Op>
struct ScoreGradients {
  using Real = typename Op::S::Real;
  KeyBlock<Op> keys;
  QueryTile<Op> queries;
  GradientTile<Op> tile;
  const char** rows;  // [max(kTileKeys, kTileQueries)]

  ScoreGradients(Scratch& scratch, const BackwardProblem& p, const GradientWidths<Op>& w)
      : keys(scratch, w, kTileKeys),
        queries(scratch, p, w),
        tile(scratch, p, false),
        rows(scratch.take<const char*>(larger(kTileKeys, kTileQueries))) {}

  // dS of the placed query rows against the keys from `begin` on, with the queries loaded.
  // Returns whether any of them is seen.
  bool compute(const BackwardProblem& p, const GradientWidths<Op>& w, int64_t begin) {
    if (!load_keys(p, w, begin)) return false;
    tile.template compute<false>(p, w, keys, queries, 0, keys.n, static_cast<bool>(p.blocks));
    return true;
  }

  // Likewise lets the rows' online softmax see those keys.
  void add_to_softmax(const Problem& p, const GradientWidths<Op>& w, int64_t begin, Real* maximum,
                      Real* total) {
    if (load_keys(p, w, begin)) tile.add_to_softmax(p, w, keys, queries, maximum, total);
  }

  // One key's dS, by query row.
  const Real* row(int64_t key) const { return tile.grad_scores + key * kTileQueries; }

 private:
  // Returns whether the queries see any of the keys.
  bool load_keys(const Problem& p, const GradientWidths<Op>& w, int64_t begin) {
    const Sequence& sequence = queries.sequence;
    keys.begin = begin;
    keys.n = smaller(kTileKeys, sequence.Mkv - begin);
    if (keys.n <= 0 || !queries.sees(p, begin, begin + keys.n)) return false;
    keys.load(p, w, rows, sequence, queries.key_head);
    return true;
  }
};

}  // namespace
}  // namespace attn::cpu
