// What positions add to the scores of a tile of the backward passes.
#pragma once

#include <cstdint>

#include "cpu/kernels/position_scores-inl.h"
#include "cpu/kernels/query_tile-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

// One side's features and scores, for tiles of up to `lines` by `columns`.
template <class S>
struct TileTerm {
  PositionFeatures<S> features;
  PositionScores<S> scores;

  TileTerm(Scratch& scratch, const PositionTerm& term, int64_t lines, int64_t columns)
      : features(scratch, term ? lines : 0, term.width),
        scores(scratch, lines, columns, term.width) {}

  // Calls visit(line, scores) as PositionScores::each_line does.
  template <class F>
  void each_line(const PositionTerm& term, const DistanceTable& table, const char** rows, int64_t b,
                 int64_t h, KeyRange lines, KeyRange columns, F&& visit) {
    features.load(term, rows, b, h, lines.begin, lines.end - lines.begin);
    scores.window.cover(table, h, table.reach(lines, columns));
    scores.each_line(table, h, features.lines, features.stride, lines, columns, visit);
  }
};

template <class S>
class TilePositions {
 public:
  using Real = typename S::Real;

  TilePositions(Scratch& scratch, const Positions& positions)
      : of_queries_(scratch, positions.of_queries, kTileQueries, kTileKeys),
        of_keys_(scratch, positions.of_keys, kTileKeys, kTileQueries),
        rows_(scratch.take<const char*>(positions ? larger(kTileQueries, kTileKeys) : 0)) {}

  // To [kTileQueries, kTileKeys], in base 2.
  template <class Tile>
  void add_scores_of_queries(Real* bias, const Problem& p, const Tile& tile, KeyRange keys) {
    const DistanceTable table(p.positions, false, tile.sequence);
    const Real factor = static_cast<Real>(p.scale * kLog2E);
    each_head_of(p, tile, [&](int64_t h, KeyRange queries, int64_t row) {
      of_queries_.each_line(p.positions.of_queries, table, rows_, tile.sequence.b, h, queries, keys,
                            [&](int64_t query, const Real* scores) {
                              Real* to = bias + (row + query - queries.begin) * kTileKeys;
                              add_position_scores<S>(to, scores, keys.end - keys.begin, factor);
                            });
    });
  }

  // To [kTileKeys, kTileQueries], in base 2.
  template <class Tile>
  void add_scores_of_keys(Real* bias, const Problem& p, const Tile& tile, KeyRange keys) {
    const DistanceTable table(p.positions, true, tile.sequence);
    const Real factor = static_cast<Real>(p.scale * kLog2E);
    each_head_of(p, tile, [&](int64_t h, KeyRange queries, int64_t row) {
      of_keys_.each_line(p.positions.of_keys, table, rows_, tile.sequence.b, h, keys, queries,
                         [&](int64_t key, const Real* scores) {
                           Real* to = bias + (key - keys.begin) * kTileQueries + row;
                           add_position_scores<S>(to, scores, queries.end - queries.begin, factor);
                         });
    });
  }

 private:
  template <class Tile, class F>
  static void each_head_of(const Problem& p, const Tile& tile, F&& visit) {
    each_head(p, tile.sequence, tile.key_head, {tile.first, tile.first + tile.n}, visit);
  }

  TileTerm<S> of_queries_, of_keys_;
  const char** rows_;
};

}  // namespace
}  // namespace attn::cpu
