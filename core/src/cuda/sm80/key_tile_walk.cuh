// A tile of key rows in shared memory, and the walk over the queries that see some of them.
#pragma once

#include "cuda/sm80/streamed_tiles.cuh"

namespace attn::cuda {

// kQueries of them at a time.
template <class Element, int kWidth, bool kExtended, int kQueries, bool kPositions = false>
class KeyTileWalk {
 public:
  using Shape = GradientShape<Element, kWidth>;
  using Memory = TileMemory<Element, kWidth>;
  using Place = TilePlace<Side::kKeys>;
  using Tile = GradientTile<Side::kKeys, kQueries, kExtended, kPositions>;
  using Range = TileRange<Side::kKeys, Shape::kStreamed>;
  static constexpr int kStreamed = Shape::kStreamed;

  // kQueries query rows in shared memory, and [3, kStreamed] of their statistics.
  struct Queries {
    typename Memory::Pair tiles;
    const float* statistics;
  };

  ATTN_DEVICE KeyTileWalk(const BackwardArguments& arguments, int64_t first)
      : a(arguments),
        p(arguments.problem),
        memory{shared_memory(), !kPositions || p.query.dtype == DType::kFloat32},
        first_row(first) {}

  // Begins to copy the keys, once nobody reads those before, or waits for them where no query did.
  // All threads of the block join.
  ATTN_DEVICE void load(int64_t b, int64_t key_head) const {
    wait_for_copies<0>();
    synchronise_block();
    load_keys<Shape>(memory.stationary(), Shape::kStationary, a, b, key_head,
                     [&](int r) { return first_row + r < p.Mkv ? first_row + r : int64_t{-1}; });
  }

  ATTN_DEVICE KeySequences sequences(int64_t b) const {
    return {p, b, first_row, Shape::kStationary, memory.flag()};
  }

  // Calls visit(place, blocks, queries) for the queries of head h in the range that block sparsity
  // lets see any key, kQueries at a time. All threads of the block join.
  template <class Visit>
  ATTN_DEVICE void each_query_tile(const RowsOfSequence& rows, int h, const Range& range,
                                   Visit&& visit) const {
    Place place{p, rows, first_row, h, 0, {}};
    for (int r = 0; r < 2; ++r) {
      place.partners[r] = partners_of<Side::kKeys>(rows.sequence, rows.index[r]);
    }
    const auto blocks_of = [&](int tile) {
      return blocks_of_tile<Side::kKeys, kStreamed>(p, rows, h, tile);
    };
    const auto next = [&](int tile) {
      if constexpr (kExtended) {
        while (tile < range.end && blocks_of(tile) == BlocksSeen::kNone) tile += kStreamed;
      }
      return tile < range.end ? tile : kNoTile;
    };
    const auto load_tile = [&](int stage, int tile) {
      load_queries_of(rows.sequence, h, stage, tile);
    };
    const auto compute = [&](int stage, int tile) {
      const BlocksSeen blocks = kExtended ? blocks_of(tile) : BlocksSeen::kAll;
#pragma unroll 1
      for (int row = 0; row < kStreamed; row += kQueries) {
        place.streamed = tile + row;
        visit(place, blocks,
              Queries{memory.streamed(stage).from(row), memory.statistics(stage) + row});
      }
    };
    stream_tiles<Shape>(range.begin, next, load_tile, compute);
  }

  // P and dS of a warp's rows. Without dS wanted only P is right.
  template <bool kOfProducts>
  ATTN_DEVICE void differentiate(Tile& tile, const Place& place, BlocksSeen blocks,
                                 const Queries& queries, bool wants_grad_scores) const {
    const auto keys = memory.stationary();
    const int K = kPositions ? static_cast<int>(p.K) : kWidth;
    const int Kv = kPositions ? static_cast<int>(p.Kv) : kWidth;
    multiply_rows<1, true>(&tile.probabilities, keys.score, warp_index() * 16, queries.tiles.score,
                           K);
    if (wants_grad_scores) {
      multiply_rows<1, true>(&tile.grad_scores, keys.value, warp_index() * 16, queries.tiles.value,
                             Kv);
    } else {
      tile.grad_scores.clear();
    }
    const float* const statistics = queries.statistics;
    tile.template differentiate<kOfProducts>(place, blocks, [&](int n, int e) {
      const int column = Place::own_column(n, e);
      return RowStatistics{statistics[column], statistics[kStreamed + column],
                           statistics[2 * kStreamed + column]};
    });
  }

  const BackwardArguments& a;
  const BackwardProblem& p;
  const Memory memory;
  const int64_t first_row;

 private:
  ATTN_DEVICE void load_queries_of(const Sequence& s, int h, int stage, int tile) const {
    const auto is_there = [&](int r) { return tile + r >= 0 && tile + r < s.Mq; };
    load_queries<Shape>(memory.streamed(stage), kStreamed, a, s.b, h,
                        [&](int r) { return is_there(r) ? s.q_begin + tile + r : int64_t{-1}; });
    float* statistics = memory.statistics(stage);
    for (int at = thread_index(); at < 3 * kStreamed; at += Shape::kThreads) {
      const int which = at / kStreamed, r = at % kStreamed;
      const RowScalars& from = which == 0 ? p.lse_maximum : which == 1 ? p.lse_rest : a.delta;
      copy_async<4>(statistics + at,
                    is_there(r) ? &from.template at<float>(s.b, h, s.q_begin + tile + r) : nullptr,
                    is_there(r));
    }
  }
};

}  // namespace attn::cuda
