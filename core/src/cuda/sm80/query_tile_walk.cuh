// A tile of query rows of one head in shared memory, and the walk over the keys they see.
#pragma once

#include "cuda/sm80/streamed_tiles.cuh"

namespace attn::cuda {

template <class Element, int kWidth, bool kExtended, bool kPositions>
class QueryTileWalk {
 public:
  using Shape = GradientShape<Element, kWidth>;
  using Memory = TileMemory<Element, kWidth>;
  using Place = TilePlace<Side::kQueries>;
  static constexpr int kStreamed = Shape::kStreamed;

  ATTN_DEVICE explicit QueryTileWalk(const BackwardArguments& arguments)
      : a(arguments),
        p(arguments.problem),
        memory{shared_memory(), !kPositions || p.query.dtype == DType::kFloat32} {
    // Divided in 32 bits, which is much the quicker.
    const uint32_t tiles = static_cast<uint32_t>(tiles_of<Shape>(p.Mq));
    const uint32_t block = static_cast<uint32_t>(block_index().x), head = block / tiles;
    // The last rows first: under a causal band they see the most keys.
    first_row = int64_t{tiles - 1 - block % tiles} * Shape::kStationary;
    h = static_cast<int>(head % static_cast<uint32_t>(p.Hq));
    b = head / static_cast<uint32_t>(p.Hq);
  }

  ATTN_DEVICE void load() const {
    load_queries<Shape>(memory.stationary(), Shape::kStationary, a, b, h,
                        [&](int r) { return first_row + r < p.Mq ? first_row + r : int64_t{-1}; });
  }

  // Row r of the thread's two in memory, and whether there is one.
  ATTN_DEVICE int64_t row(int r) const { return first_row + own_row(r); }
  ATTN_DEVICE bool has_row(int r) const { return row(r) < p.Mq; }

  ATTN_DEVICE RowStatistics statistics_of(int r) const {
    if (!has_row(r)) return {infinity(), 0.0f, 0.0f};
    return {p.lse_maximum.template at<float>(b, h, row(r)),
            p.lse_rest.template at<float>(b, h, row(r)), a.delta.template at<float>(b, h, row(r))};
  }

  // Calls visit(place, blocks, stage) for every tile of keys that any row sees. All threads of the
  // block join.
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

}  // namespace attn::cuda
