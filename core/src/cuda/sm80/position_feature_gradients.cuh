// The gradients of positions' features: each line is the sum of the rows of the table that it
// meets, weighted by its score gradients.
//
// A block of threads owns a tile of queries, or of keys, of one query head, and 64 columns; for
// each of these it goes through the scores anew.
#pragma once

#include "cuda/sm80/key_tile_walk.cuh"
#include "cuda/sm80/position_sums.cuh"
#include "cuda/sm80/query_tile_walk.cuh"

namespace attn::cuda {

// What they are written to, or added to: those of the query or the key where these are the
// features.
template <Side kLines>
ATTN_INLINE const HeadRows& grad_features(const BackwardProblem& p) {
  if constexpr (kLines == Side::kQueries) {
    return p.positions.of_queries.is_content ? p.grad_query : p.grad_position_query;
  } else {
    return p.positions.of_keys.is_content ? p.grad_key : p.grad_position_key;
  }
}

// Blocks of threads along the columns of features.
ATTN_INLINE constexpr int64_t position_chunks(const PositionTerm& term) {
  return (term.width + PositionSums::kColumns - 1) / PositionSums::kColumns;
}

// The lines of one side, as rows of a block's tile: queries, or keys.
template <Side kLines>
class FeatureGradients {
 public:
  ATTN_DEVICE FeatureGradients(const BackwardProblem& p)
      : p_(p), term_(kLines == Side::kQueries ? p.positions.of_queries : p.positions.of_keys) {
    sums_.first = block_index().y * PositionSums::kColumns;
    sums_.clear();
  }

  // Adds what a tile of score gradients gives, `memory` being free for them.
  template <int kColumns>
  ATTN_DEVICE void add(const Sums<kColumns>& tile, const TilePlace<kLines>& place, void* memory) {
    const SharedGrads<kColumns> grads{static_cast<float*>(memory)};
    grads.store(tile);
    if (!place.pairs_any(kColumns)) return;
    const int begin = warp_index() * kSquare, end = begin + kSquare;
    const int line = static_cast<int>(place.first_row) + begin;
    constexpr int kStep = kLines == Side::kQueries ? 1 : -1;
    const int64_t middle =
        p_.positions.zero_row - place.rows.sequence.diagonal + kStep * (place.streamed - line);
    const RowFormat format(term_.table, term_.width);
    sums_.add(
        kColumns + kSquare, format,
        [&](int r, int k) { return grads.at(begin + r, k + r - kSquare + 1, end); },
        [&](int k) { return table_row(term_, place.h, middle, kStep, k); });
  }

  ATTN_DEVICE void store(int64_t b, int h, int64_t first_row) const {
    const HeadRows& to = grad_features<kLines>(p_);
    const int64_t lines = kLines == Side::kQueries ? p_.Mq : p_.Mkv;
    const int64_t first = first_row + warp_index() * kSquare;
    sums_.store(to.dtype, static_cast<int>(term_.width), static_cast<float>(p_.scale),
                term_.is_content,
                [&](int r) { return first + r < lines ? to.row(b, first + r, h) : nullptr; });
  }

 private:
  const BackwardProblem& p_;
  const PositionTerm& term_;
  PositionSums sums_;
};

ATTN_DEVICE void sum_query_feature_gradients(const BackwardArguments& arguments) {
  using Walk = QueryTileWalk<RareElement, kWidestTile, true, true>;
  constexpr int kStreamed = Walk::kStreamed;
  const Walk walk(arguments);
  walk.load();
  const RowStatistics statistics[2] = {walk.statistics_of(0), walk.statistics_of(1)};
  FeatureGradients<Side::kQueries> gradients(walk.p);
  QuerySequences sequences(walk.p, walk.b, walk.first_row, Walk::Shape::kStationary);
  RowsOfSequence rows;
  while (sequences.next(rows)) {
    walk.each_key_tile(rows, [&](const Walk::Place& place, BlocksSeen blocks, int stage) {
      const auto queries = walk.memory.stationary(), keys = walk.memory.streamed(stage);
      GradientTile<Side::kQueries, kStreamed, true, true> tile;
      multiply_rows(&tile.probabilities, queries.score, warp_index() * 16, keys.score,
                    static_cast<int>(walk.p.K));
      multiply_rows(&tile.grad_scores, queries.value, warp_index() * 16, keys.value,
                    static_cast<int>(walk.p.Kv));
      tile.differentiate<false>(place, blocks, [&](int, int e) { return statistics[e / 2]; });
      gradients.add(tile.grad_scores, place, keys.score.data);
    });
  }
  wait_for_copies<0>();
  gradients.store(walk.b, walk.h, walk.first_row);
}

ATTN_DEVICE void sum_key_feature_gradients(const BackwardArguments& arguments) {
  using Walk = KeyTileWalk<RareElement, kWidestTile, true, RareShape::kStreamed, true>;
  const BackwardProblem& p = arguments.problem;
  const int64_t tiles = tiles_of<RareShape>(p.Mkv), heads = block_index().x / tiles;
  const Walk walk(arguments, block_index().x % tiles * RareShape::kStationary);
  const int64_t b = heads / p.Hq;
  const int h = static_cast<int>(heads % p.Hq);
  walk.load(b, h / p.G);
  FeatureGradients<Side::kKeys> gradients(p);
  KeySequences sequences = walk.sequences(b);
  RowsOfSequence rows;
  while (sequences.next(rows)) {
    const Walk::Range range(rows);
    walk.each_query_tile(
        rows, h, range,
        [&](const Walk::Place& place, BlocksSeen blocks, const Walk::Queries& queries) {
          Walk::Tile tile;
          walk.differentiate<false>(tile, place, blocks, queries, true);
          gradients.add(tile.grad_scores, place, queries.tiles.score.data);
        });
  }
  wait_for_copies<0>();
  gradients.store(b, h, walk.first_row);
}

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    position_query_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<RareElement>) sum_query_feature_gradients(arguments);
}

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    position_key_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<RareElement>) sum_key_feature_gradients(arguments);
}

}  // namespace attn::cuda
