// What positions add to the scores of a strip of query rows against a tile of keys.
#pragma once

#include <cstdint>

#include "cpu/kernels/position_scores-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

template <class S>
class StripPositions {
 public:
  using Real = typename S::Real;

  // For blocks of query rows, cut into strips, against tiles of keys. Nothing without positions.
  StripPositions(Scratch& scratch, const Problem& p, int64_t block_rows, int64_t strip_rows,
                 int64_t keys)
      : StripPositions(scratch, p.positions.of_queries, p.positions.of_keys, block_rows,
                       p.positions ? strip_rows : 0, p.positions ? keys : 0) {}

  // The scores of the strip's row r, in base 2, from the first computed column on.
  const Real* row(int64_t r) const { return sum_ + r * keys_; }

  // Rows `strip` of the rows `block` of a key head, against keys `columns` of those of the tile.
  void compute(const Problem& p, const Sequence& sequence, int64_t key_head, KeyRange block,
               KeyRange strip, KeyRange tile, KeyRange columns) {
    each_head(p, sequence, key_head, strip, [&](int64_t h, KeyRange queries, int64_t row) {
      const int64_t before = h % p.G * sequence.Mq;
      const KeyRange of_block{larger(block.begin - before, 0),
                              smaller(block.end - before, sequence.Mq)};
      if (p.positions.of_queries) {
        set_scores_of_queries(p, sequence, h, of_block, queries, tile, columns, row);
      }
      if (p.positions.of_keys) {
        compute_scores_of_keys(p, sequence, h, of_block, queries, tile, columns);
        transpose_scores_of_keys(row, queries.end - queries.begin, columns.end - columns.begin,
                                 static_cast<bool>(p.positions.of_queries));
      }
    });
  }

 private:
  StripPositions(Scratch& scratch, const PositionTerm& of_queries, const PositionTerm& of_keys,
                 int64_t block_rows, int64_t strip_rows, int64_t keys)
      : keys_(keys),
        stride_(round_up(strip_rows, S::kWidth)),
        sum_(scratch.take<Real>(strip_rows * keys)),
        by_key_(scratch.take<Real>(of_keys ? keys * stride_ : 0)),
        rows_(scratch.take<const char*>(larger(strip_rows, keys))),
        query_features_(scratch, of_queries ? strip_rows : 0, of_queries.width),
        key_features_(scratch, of_keys ? keys : 0, of_keys.width),
        query_scores_(scratch, block_rows, of_queries ? keys : 0, of_queries.width),
        key_scores_(scratch, keys, of_keys ? block_rows : 0, of_keys.width) {}

  void set_scores_of_queries(const Problem& p, const Sequence& sequence, int64_t h, KeyRange block,
                             KeyRange queries, KeyRange tile, KeyRange columns, int64_t row) {
    const DistanceTable table(p.positions, false, sequence);
    query_features_.load(p.positions.of_queries, rows_, sequence.b, h, queries.begin,
                         queries.end - queries.begin);
    query_scores_.window.cover(table, h, table.reach(block, tile));
    const auto factor = S::set1(static_cast<Real>(p.scale * kLog2E));
    query_scores_.each_line(table, h, query_features_.lines, query_features_.stride, queries,
                            columns, [&](int64_t query, const Real* scores) {
                              Real* to = sum_ + (row + query - queries.begin) * keys_;
                              for (int64_t c = 0; c < columns.end - columns.begin; c += S::kWidth) {
                                S::store(to + c, S::mul(S::load(scores + c), factor));
                              }
                            });
  }

  void compute_scores_of_keys(const Problem& p, const Sequence& sequence, int64_t h, KeyRange block,
                              KeyRange queries, KeyRange tile, KeyRange columns) {
    const DistanceTable table(p.positions, true, sequence);
    key_features_.load(p.positions.of_keys, rows_, sequence.b, h, tile.begin,
                       tile.end - tile.begin);
    key_scores_.window.cover(table, h, table.reach(tile, block));
    const auto factor = S::set1(static_cast<Real>(p.scale * kLog2E));
    const Real* features =
        key_features_.lines + (columns.begin - tile.begin) * key_features_.stride;
    key_scores_.each_line(table, h, features, key_features_.stride, columns, queries,
                          [&](int64_t key, const Real* scores) {
                            Real* to = by_key_ + (key - columns.begin) * stride_;
                            for (int64_t c = 0; c < queries.end - queries.begin; c += S::kWidth) {
                              S::store(to + c, S::mul(S::load(scores + c), factor));
                            }
                          });
  }

  // Puts the scores of keys, or adds them, to n rows from `row` on.
  void transpose_scores_of_keys(int64_t row, int64_t n, int64_t columns, bool adds) {
    constexpr int W = S::kWidth;
    for (int64_t r = 0; r < n; r += W) {
      for (int64_t c = 0; c < columns; c += W) {
        typename S::Vec square[W];
        for (int l = 0; l < W; ++l) square[l] = S::load(by_key_ + (c + l) * stride_ + r);
        S::transpose(square);
        for (int64_t l = 0; l < smaller(W, n - r); ++l) {
          Real* to = sum_ + (row + r + l) * keys_ + c;
          S::store(to, adds ? S::add(S::load(to), square[l]) : square[l]);
        }
      }
    }
  }

  const int64_t keys_, stride_;
  Real* sum_;          // [strip_rows, keys]
  Real* by_key_;       // [keys, stride]: the scores of keys
  const char** rows_;  // [max(strip_rows, keys)]
  PositionFeatures<S> query_features_, key_features_;
  PositionScores<S> query_scores_, key_scores_;
};

}  // namespace
}  // namespace attn::cpu
