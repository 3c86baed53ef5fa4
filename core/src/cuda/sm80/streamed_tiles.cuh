// The two sides of the backward's tiles in shared memory, and the loop over the streamed one.
#pragma once

#include "cuda/device/row_tile.cuh"
#include "cuda/sm80/backward_arguments.h"
#include "cuda/sm80/gradient_tile.cuh"
#include "cuda/sm80/output_stage.cuh"

namespace attn::cuda {

constexpr int kNoTile = INT32_MIN;  // tiles that begin before their sequence are below 0

// Rows of one side: those whose products are scores, Q or K, and those whose products are the
// gradients of probabilities, dO or V.
template <class Tile>
struct RowPair {
  Tile score, value;

  static constexpr int bytes(int rows) { return 2 * Tile::bytes(rows); }
  ATTN_DEVICE RowPair(char* memory, int rows, bool splits)
      : score(memory, splits), value(memory + Tile::bytes(rows), splits) {}
  // The same without its first rows.
  ATTN_DEVICE RowPair from(int row) const {
    RowPair rest = *this;
    rest.score.data = score.at(row, 0);
    rest.value.data = value.at(row, 0);
    return rest;
  }
};

// Shared memory of a block: the stationary rows, and per stage streamed rows with the statistics of
// those that are queries.
template <class Element, int kWidth>
struct TileMemory {
  using Shape = GradientShape<Element, kWidth>;
  using Tile = RowTile<Element, kWidth>;
  using Pair = RowPair<Tile>;
  static constexpr int kStationaryBytes = Pair::bytes(Shape::kStationary);
  static constexpr int kStatisticsBytes = 3 * Shape::kStreamed * static_cast<int>(sizeof(float));
  static constexpr int kStageBytes = Pair::bytes(Shape::kStreamed) + kStatisticsBytes;
  static constexpr int kBytes =
      kStationaryBytes + Shape::kStages * kStageBytes + static_cast<int>(sizeof(int));
  static_assert(Shape::kThreads / kWarpLanes * OutputStage<kWidth>::kBytes <= kBytes);

  char* base;
  bool splits;  // as of its tiles

  ATTN_DEVICE Pair stationary() const { return {base, Shape::kStationary, splits}; }
  ATTN_DEVICE Pair streamed(int stage) const { return {at(stage), Shape::kStreamed, splits}; }
  // [3, kStreamed]: maximum, rest and delta
  ATTN_DEVICE float* statistics(int stage) const {
    return reinterpret_cast<float*>(at(stage) + Pair::bytes(Shape::kStreamed));
  }
  ATTN_DEVICE int* flag() const {
    return reinterpret_cast<int*>(base + kStationaryBytes + Shape::kStages * kStageBytes);
  }

 private:
  ATTN_DEVICE char* at(int stage) const { return base + kStationaryBytes + stage * kStageBytes; }
};

using RareMemory = TileMemory<RareElement, kWidestTile>;

// An operand as rows of a tile are loaded from it.
struct Operand {
  const HeadRows& rows;
  int64_t width;
  bool is_aligned;
};

// Loads rows of head h of both of a side's operands, one after the other: the code is there once.
// row_of(r) is the one for row r of the tile; negative ones are zeros.
template <class Shape, class Tile, class RowOf>
ATTN_DEVICE void load_operands(const RowPair<Tile>& tiles, int rows, const Operand& score,
                               const Operand& value, int64_t b, int64_t h, RowOf&& row_of) {
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    const bool is_score = which == 0;
    const HeadRows& x = is_score ? score.rows : value.rows;
    const RowSource source{{x, is_score ? score.width : value.width},
                           is_score ? score.is_aligned : value.is_aligned};
    Tile tile = tiles.score;
    if (!is_score) tile.data = tiles.value.data;
    load_rows<Shape::kThreads>(tile, rows, source, [&](int r) -> const char* {
      const int64_t row = row_of(r);
      return row < 0 ? nullptr : x.row(b, row, h);
    });
  }
}

// Those of queries and gradients of outputs.
template <class Shape, class Tile, class RowOf>
ATTN_DEVICE void load_queries(const RowPair<Tile>& tiles, int rows, const BackwardArguments& a,
                              int64_t b, int64_t h, RowOf&& row_of) {
  const BackwardProblem& p = a.problem;
  load_operands<Shape>(tiles, rows, {p.query, p.K, a.query_is_aligned},
                       {p.grad_out, p.Kv, a.grad_out_is_aligned}, b, h, row_of);
}

// Those of keys and values.
template <class Shape, class Tile, class RowOf>
ATTN_DEVICE void load_keys(const RowPair<Tile>& tiles, int rows, const BackwardArguments& a,
                           int64_t b, int64_t h, RowOf&& row_of) {
  const BackwardProblem& p = a.problem;
  load_operands<Shape>(tiles, rows, {p.key, p.K, a.key_is_aligned},
                       {p.value, p.Kv, a.value_is_aligned}, b, h, row_of);
}

// Calls compute(stage, tile) for every streamed tile, with its rows in shared memory. next(from) is
// the first tile not before index `from`, or kNoTile; load(stage, tile) begins its copies.
template <class Shape, class Next, class Load, class Compute>
ATTN_DEVICE void stream_tiles(int begin, Next&& next, Load&& load, Compute&& compute) {
  const auto compute_loaded = [&](int stage, int tile) {
    synchronise_block();
    compute(stage, tile);
    synchronise_block();
  };
  int following = next(begin);
  if constexpr (Shape::kStages == 1) {
#pragma unroll 1
    for (; following != kNoTile; following = next(following + Shape::kStreamed)) {
      load(0, following);
      commit_copies();
      wait_for_copies<0>();
      compute_loaded(0, following);
    }
  } else {
    int stage = 0, tile = kNoTile;
#pragma unroll 1
    while (tile != kNoTile || following != kNoTile) {
      if (following != kNoTile) load(stage, following);
      commit_copies();
      stage ^= 1;
      if (tile != kNoTile) {
        wait_for_copies<1>();
        compute_loaded(stage, tile);
      }
      tile = following;
      following = tile == kNoTile ? kNoTile : next(tile + Shape::kStreamed);
    }
  }
}

// The streamed tiles that the stationary rows meet, in steps of kStep from a multiple of it.
template <Side kStationary, int kStep>
struct TileRange {
  int begin, end;

  ATTN_DEVICE explicit TileRange(const RowsOfSequence& rows) {
    const Sequence& s = rows.sequence;
    const Partners low = partners_of<kStationary>(s, rows.lowest);
    const Partners high = partners_of<kStationary>(s, rows.highest);
    begin = low.begin / kStep * kStep;
    end = high.end;
  }
};

// What block sparsity lets tile `streamed` of kCount rows see; none if it is outside the sequence.
template <Side kStationary, int kCount>
ATTN_DEVICE BlocksSeen blocks_of_tile(const Problem& p, const RowsOfSequence& rows, int h,
                                      int streamed) {
  if (!p.blocks) return BlocksSeen::kAll;
  const Sequence& s = rows.sequence;
  const int64_t count = kStationary == Side::kQueries ? s.Mkv : s.Mq;
  const int end = static_cast<int>(clamp(streamed + kCount, 0, count));
  if constexpr (kStationary == Side::kQueries) {
    return blocks_seen(p.blocks, h, rows.lowest, rows.highest + 1, streamed, end);
  } else {
    return blocks_seen(p.blocks, h, streamed, end, rows.lowest, rows.highest + 1);
  }
}

// Adds weights times the first kRows rows of right; nothing but these sums reads either hereafter.
// With kCareful rows are read as `read` says, for which all threads of the block join, and weights
// keep their rests where `keeps_rests` does.
template <bool kCareful, class Shape, int kRows, class Tile>
ATTN_DEVICE void add_rows(Sums<Tile::kWidth>& sums, Sums<kRows>& weights, const Tile& right,
                          RowsRead read, bool keeps_rests) {
  if (kCareful && read != RowsRead::kAsTheyAre) {
    if (read == RowsRead::kWhetherNonfinite) count_weights(weights);
    synchronise_block();
    rewrite_rows<kRows, Shape::kThreads>(right, read);
    synchronise_block();
  }
  add_weighted_rows(&sums, &weights, right, kCareful && keeps_rests);
}

// How block `number` of threads reads its streamed rows at first. `redo` says where the plain
// kernels, which come before extended ones, have left NaN; null if they do not.
template <bool kExtended>
ATTN_DEVICE RowsRead first_read(const int32_t* redo, int64_t number) {
  if (!kExtended || !redo) return RowsRead::kAsTheyAre;
  return redo[number] != 0 ? RowsRead::kFiniteOnly : RowsRead::kNoMore;
}

// Writes a warp's 16 rows of sums, times `factor`, where the tile's row r is row first_row + r of
// `to`. `memory` is the block's, all of whose threads join.
template <int kWidth>
ATTN_DEVICE void store_sums(char* memory, const Sums<kWidth>& sums, const HeadRows& to, int64_t b,
                            int64_t h, int64_t first_row, int64_t rows, int64_t width, float factor,
                            RowsRead read) {
  using Stage = OutputStage<kWidth>;
  const int thread = opaque(thread_index()), warp = thread / kWarpLanes;
  const Stage stage{reinterpret_cast<float*>(memory + warp * Stage::kBytes)};
  const int64_t first = first_row + 16 * warp;
  const int count = static_cast<int>(clamp(rows - first, 0, 16));
  const float multiplier = read == RowsRead::kWhetherNonfinite ? 1.0f : factor;
  synchronise_block();
  stage.store(sums, {multiplier, multiplier}, count, static_cast<int>(width), to.dtype, read,
              thread % kWarpLanes, [&](int r) { return to.row(b, first + r, h); });
}

}  // namespace attn::cuda
