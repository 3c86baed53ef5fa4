// The gradients of positions' tables: each row is the sum of the features of the lines that meet
// it, weighted by their score gradients.
//
// These are first summed for every distance by itself: a block of threads owns as many distances of
// a query head as a tile has keys, 64 columns, and visits the tiles that the distances cross, in a
// fixed order. A row of the table then adds up the distances that it stands for.
#pragma once

#include "cuda/sm80/key_tile_walk.cuh"
#include "cuda/sm80/position_sums.cuh"

namespace attn::cuda {

struct PositionTableArguments {
  BackwardArguments backward;
  bool of_keys;  // the table that keys' features meet
  float* sums;   // [Hq, count, width]: of distance first + index
  int64_t first, count;

  ATTN_DEVICE const PositionTerm& term() const {
    const Positions& positions = backward.problem.positions;
    return of_keys ? positions.of_keys : positions.of_queries;
  }
};

class PositionTableSums {
 public:
  static constexpr int kStreamed = RareShape::kStreamed, kRows = RareShape::kStationary;

  ATTN_DEVICE explicit PositionTableSums(const PositionTableArguments& arguments)
      : arguments_(arguments), p_(arguments.backward.problem), term_(arguments.term()) {
    const int64_t windows = (arguments.count + kRows - 1) / kRows;
    h_ = static_cast<int>(block_index().x / windows);
    first_ = static_cast<int>(arguments.first + block_index().x % windows * kRows);
    sums_.first = block_index().y * PositionSums::kColumns;
    sums_.clear();
  }

  ATTN_DEVICE void run() {
    for (int64_t b = 0; b < p_.B; ++b) {
      for (int64_t row = 0; row < p_.Mkv; row += kRows) add_keys(b, row);
    }
    wait_for_copies<0>();
    const int64_t at = first_ - arguments_.first + warp_index() * kSquare;
    sums_.store(DType::kFloat32, static_cast<int>(term_.width), 1.0f, false, [&](int r) {
      float* const row = arguments_.sums + (h_ * arguments_.count + at + r) * term_.width;
      return at + r < arguments_.count ? reinterpret_cast<char*>(row) : nullptr;
    });
  }

 private:
  using Walk = KeyTileWalk<RareElement, kWidestTile, true, kStreamed, true>;
  using Place = Walk::Place;

  ATTN_DEVICE void add_keys(int64_t b, int64_t first_row) {
    const Walk walk(arguments_.backward, first_row);
    KeySequences sequences = walk.sequences(b);
    RowsOfSequence rows;
    while (sequences.next(rows)) {
      Walk::Range range(rows);
      const int64_t begin = clamp(rows.lowest - first_ - kRows + 1, 0, rows.sequence.Mq);
      const int64_t end = clamp(rows.highest - first_ + 1, 0, rows.sequence.Mq);
      if (begin > range.begin) range.begin = static_cast<int>(begin) / kStreamed * kStreamed;
      if (end < range.end) range.end = static_cast<int>(end);
      if (range.begin >= range.end) continue;
      walk.load(b, h_ / p_.G);
      walk.each_query_tile(
          rows, h_, range,
          [&](const Place& place, BlocksSeen blocks, const Walk::Queries& queries) {
            Walk::Tile tile;
            walk.differentiate<false>(tile, place, blocks, queries, true);
            const SharedGrads<kStreamed> grads{reinterpret_cast<float*>(queries.tiles.score.data)};
            grads.store(tile.grad_scores);
            add_tile(grads, place);
          });
    }
  }

  ATTN_DEVICE void add_tile(const SharedGrads<kStreamed>& grads, const Place& place) {
    const bool of_keys = arguments_.of_keys;
    const int first_key = static_cast<int>(place.first_row);
    const int first_line = of_keys ? first_key : place.streamed;
    const int64_t lines = of_keys ? p_.Mkv : p_.Mq;
    // Sum r is of the keys that are so many rows of the tile further on than queries are columns.
    const int ahead = first_ + warp_index() * kSquare - (first_key - place.streamed);
    sums_.add(
        of_keys ? kRows : kStreamed, RowFormat(term_.features, term_.width),
        [&](int r, int k) {
          return of_keys ? grads.at(k, k - ahead - r, kRows) : grads.at(k + ahead + r, k, kRows);
        },
        [&](int k) -> const char* {
          const int64_t line = first_line + k;
          return line < lines ? term_.features.row(place.rows.sequence.b, line, h_) : nullptr;
        });
  }

  const PositionTableArguments& arguments_;
  const BackwardProblem& p_;
  const PositionTerm& term_;
  int h_, first_;  // the first distance
  PositionSums sums_;
};

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    position_table_sums_kernel(ATTN_ARGUMENTS const PositionTableArguments arguments) {
  if constexpr (kIsServed<RareElement>) PositionTableSums(arguments).run();
}

// Distances [begin, end), among them all that read row `row` of the table.
struct DistancesOfRow {
  int64_t begin, end;

  // `zero` is the row of distance 0, of those that distances have.
  ATTN_DEVICE DistancesOfRow(const PositionTableArguments& a, int64_t row, int64_t zero)
      : begin(a.first), end(a.first + a.count) {
    const PositionTerm& term = a.term();
    if (term.table_row_of) return;
    // Its own distance, or all beyond an end of the table.
    if (row > 0) begin = clamp(row - zero, begin, end);
    if (row < term.num_distances - 1) end = clamp(row - zero + 1, begin, end);
  }
};

// A block of threads for each row of the gradient and 32 of its columns: one column a lane.
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    position_table_gradients_kernel(ATTN_ARGUMENTS const PositionTableArguments a) {
  const BackwardProblem& p = a.backward.problem;
  const PositionTerm& term = a.term();
  const HeadRows& to = a.of_keys ? p.grad_query_table : p.grad_key_table;
  const int64_t row = block_index().x % term.num_table_rows,
                h = block_index().x / term.num_table_rows;
  const int64_t column = int64_t{block_index().y} * kWarpLanes + lane();
  const int64_t heads_end = to.stride_h == 0 ? p.Hq : h + 1;
  const int64_t zero = p.positions.zero_row - (p.band.bottom_right ? p.Mkv - p.Mq : 0);
  const DistancesOfRow distances(a, row, zero);
  double sum = 0.0;
  for (int64_t head = h; column < term.width && head < heads_end; ++head) {
    const float* const sums = a.sums + head * a.count * term.width + column;
    for (int64_t distance = distances.begin + warp_index(); distance < distances.end;
         distance += kThreads / kWarpLanes) {
      if (place_of(term, distance + zero) != row) continue;
      sum += static_cast<double>(sums[(distance - a.first) * term.width]);
    }
  }
  double* const of_warps = reinterpret_cast<double*>(shared_memory());
  of_warps[thread_index()] = sum;
  synchronise_block();
  if (warp_index() != 0 || column >= term.width) return;
  for (int warp = 1; warp < kThreads / kWarpLanes; ++warp) {
    sum += of_warps[warp * kWarpLanes + lane()];
  }
  write_number(to.row(0, row, h) + column * element_bytes(to.dtype), to.dtype,
               static_cast<float>(sum * p.scale));
}

}  // namespace attn::cuda
