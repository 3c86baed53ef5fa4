// dQ: a block of threads owns a tile of query rows of one head, and adds what every key that they
// see gives, in a fixed order.
#pragma once

#include "cuda/sm80/streamed_tiles.cuh"

namespace attn::cuda {

// A tile of query rows in shared memory, and the walk over the keys they see.
template <class Element, int kWidth, bool kExtended>
class QueryTileWalk {
 public:
  using Shape = GradientShape<Element, kWidth>;
  using Memory = TileMemory<Element, kWidth>;
  using Place = TilePlace<Side::kQueries>;
  static constexpr int kStreamed = Shape::kStreamed;

  ATTN_DEVICE explicit QueryTileWalk(const BackwardArguments& arguments)
      : a(arguments), p(arguments.problem), memory{shared_memory()} {
    const int64_t tiles = (p.Mq + Shape::kStationary - 1) / Shape::kStationary;
    const int64_t block = block_index().x;
    first_row = block % tiles * Shape::kStationary;
    h = static_cast<int>(block / tiles % p.Hq);
    b = block / tiles / p.Hq;
  }

  ATTN_DEVICE void load() const {
    load_queries<Shape>(memory.stationary(), Shape::kStationary, a, b, h, [&](int r) {
      return first_row + r < p.Mq ? first_row + r : int64_t{-1};
    });
  }

  // Row r of the thread's two in memory, and whether there is one.
  ATTN_DEVICE int64_t row(int r) const { return first_row + own_row(r); }
  ATTN_DEVICE bool has_row(int r) const { return row(r) < p.Mq; }

  ATTN_DEVICE RowStatistics statistics_of(int r) const {
    if (!has_row(r)) return {infinity(), 0.0f, 0.0f};
    return {p.lse_maximum.template at<float>(b, h, row(r)),
            p.lse_rest.template at<float>(b, h, row(r)), a.delta.template at<float>(b, h, row(r))};
  }

  // Calls visit(place, blocks, stage) with the scores' products still to be made, for every tile of
  // keys that any of the warp's rows sees.
  template <class Visit>
  ATTN_DEVICE void each_key_tile(const RowsOfSequence& rows, Visit&& visit) const {
    const Sequence& s = rows.sequence;
    const TileRange<Side::kQueries, kStreamed> range(rows);
    Place place{p, rows, first_row, h, 0, {}};
    for (int r = 0; r < 2; ++r) place.partners[r] = partners_of<Side::kQueries>(s, rows.index[r]);
    const auto blocks_of = [&](int tile) {
      return blocks_of_tile<Side::kQueries, kStreamed>(p, rows, h, tile);
    };
    const auto next = [&](int tile) {
      if constexpr (kExtended) {
        while (tile < range.end && blocks_of(tile) == BlocksSeen::kNone) tile += kStreamed;
      }
      return tile < range.end ? tile : kNoTile;
    };
    const auto load_tile = [&](int stage, int tile) {
      load_keys<Shape>(memory.streamed(stage), kStreamed, a, s.b, h / p.G, [&](int r) {
        return tile + r < s.Mkv ? key_row_of(p, s, tile + r) : int64_t{-1};
      });
    };
    const auto compute = [&](int stage, int tile) {
      place.streamed = tile;
      if (!place.pairs_any(kStreamed)) return;
      visit(place, kExtended ? blocks_of(tile) : BlocksSeen::kAll, stage);
    };
    stream_tiles<Shape>(range.begin, next, load_tile, compute);
  }

  const BackwardArguments& a;
  const BackwardProblem& p;
  const Memory memory;
  int64_t first_row, b;
  int h;
};

template <class Element, int kWidth, bool kExtended>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS((GradientShape<Element, kWidth>::kThreads), 1)
    query_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  using Walk = QueryTileWalk<Element, kWidth, kExtended>;
  constexpr int kStreamed = Walk::kStreamed;
  const Walk walk(arguments);
  const BackwardProblem& p = walk.p;
  int32_t* const redo = arguments.redo_queries ? arguments.redo_queries + block_index().x : nullptr;
  if (kExtended && redo && *redo == 0) return;
  walk.load();
  const RowStatistics statistics[2] = {walk.statistics_of(0), walk.statistics_of(1)};
  Sums<kWidth> sums;
  sums.clear();
  QuerySequences sequences(p, walk.b, walk.first_row, Walk::Shape::kStationary);
  RowsOfSequence rows;
#pragma unroll 1
  while (sequences.next(rows)) {
    walk.each_key_tile(rows, [&](const typename Walk::Place& place, BlocksSeen blocks, int stage) {
      const auto queries = walk.memory.stationary(), keys = walk.memory.streamed(stage);
      GradientTile<Side::kQueries, kStreamed, kExtended> tile;
      multiply_rows<false>(tile.probabilities, queries.score, warp_index() * 16, keys.score);
      multiply_rows<false>(tile.grad_scores, queries.value, warp_index() * 16, keys.value);
      tile.template differentiate<true>(place, blocks,
                                        [&](int, int e) { return statistics[e / 2]; });
      add_rows<kExtended>(sums, tile.grad_scores, keys.score, tile.is_masked);
    });
  }
  wait_for_copies<0>();
  store_sums<Element>(sums, p.grad_query, walk.b, walk.h, walk.first_row, p.Mq, p.K,
                      static_cast<float>(p.scale));
  if constexpr (!kExtended) {
    const bool has_nan = any_of_block(sums.has_nan(), walk.memory.flag());
    if (thread_index() == 0) *redo = has_nan;
  }
}

}  // namespace attn::cuda
