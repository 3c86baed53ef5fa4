// The gradients of what biases a score by its distance from the diagonal: slopes and the table.
//
// dS is first summed along every diagonal, in double, since one may hold millions of scores: a
// block of threads owns 64 distances of a head and visits the tiles that they cross, in a fixed
// order. From these sums each gradient is a short one.
#pragma once

#include "cuda/sm80/key_tile_walk.cuh"

namespace attn::cuda {

constexpr int kDistancesOfBlock = 64;

struct DistanceArguments {
  BackwardArguments backward;
  double* sums;  // [Hq, count]: of distance first + index
  int64_t first, count;
};

class DistanceSums {
 public:
  static constexpr int kStreamed = RareShape::kStreamed, kRows = RareShape::kStationary;
  using Walk = KeyTileWalk<RareElement, kWidestTile, true, kStreamed, true>;
  static_assert(RareShape::kStages == 1, "dS takes the place of the queries it was made from");
  static_assert(RareShape::kThreads >= kDistancesOfBlock);
  // Beside the tiles: the index of each key row.
  static constexpr int kBytes = RareMemory::kBytes + kRows * static_cast<int>(sizeof(int));

  ATTN_DEVICE explicit DistanceSums(const DistanceArguments& arguments)
      : arguments_(arguments), p_(arguments.backward.problem) {
    const int64_t chunks = (arguments.count + kDistancesOfBlock - 1) / kDistancesOfBlock;
    h_ = static_cast<int>(block_index().x / chunks);
    first_ = arguments.first + block_index().x % chunks * kDistancesOfBlock;
  }

  ATTN_DEVICE void run() {
    const int64_t batch = p_.sequences ? 1 : p_.B;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t row = 0; row < p_.Mkv; row += kRows) add_keys(b, row);
    }
    wait_for_copies<0>();
    const int64_t at = first_ - arguments_.first + thread_index();
    if (thread_index() < kDistancesOfBlock && at < arguments_.count) {
      arguments_.sums[h_ * arguments_.count + at] = sum_;
    }
  }

 private:
  using Place = Walk::Place;
  using Queries = Walk::Queries;
  using Tile = Walk::Tile;

  ATTN_DEVICE void add_keys(int64_t b, int64_t first_row) {
    const Walk walk(arguments_.backward, first_row);
    bool is_loaded = false;
    KeySequences sequences = walk.sequences(b);
    RowsOfSequence rows;
    while (sequences.next(rows)) {
      const Sequence& s = rows.sequence;
      Walk::Range range(rows);
      // Key j and query i are j - i - diagonal apart.
      const int64_t last = first_ + kDistancesOfBlock - 1;
      const int begin = static_cast<int>(clamp(rows.lowest - s.diagonal - last, 0, s.Mq));
      const int end = static_cast<int>(clamp(rows.highest - s.diagonal - first_ + 1, 0, s.Mq));
      range.begin = begin > range.begin ? begin / kStreamed * kStreamed : range.begin;
      range.end = end < range.end ? end : range.end;
      if (range.begin >= range.end) continue;
      if (!is_loaded) {
        walk.load(b, h_ / p_.G);
        is_loaded = true;
      }
      walk.each_query_tile(rows, h_, range,
                           [&](const Place& place, BlocksSeen blocks, const Queries& queries) {
                             add_tile(walk, place, blocks, queries);
                           });
    }
  }

  ATTN_DEVICE void add_tile(const Walk& walk, const Place& place, BlocksSeen blocks,
                            const Queries& queries) {
    Tile tile;
    walk.differentiate<false>(tile, place, blocks, queries, true);
    float* const grads = reinterpret_cast<float*>(queries.tiles.score.data);
    int* const indices = reinterpret_cast<int*>(shared_memory() + RareMemory::kBytes);
    synchronise_block();  // nobody reads the queries any more
#pragma unroll
    for (int n = 0; n < Tile::kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        grads[own_row(e / 2) * kStreamed + Place::own_column(n, e)] = tile.grad_scores.values[n][e];
      }
    }
    for (int r = 0; r < 2; ++r) {
      if (lane() % 4 == 0) indices[own_row(r)] = place.rows.index[r];
    }
    synchronise_block();
    if (thread_index() >= kDistancesOfBlock) return;
    const int64_t distance = first_ + thread_index();
    for (int r = 0; r < kRows; ++r) {
      if (indices[r] < 0) continue;
      const int64_t column = indices[r] - place.rows.sequence.diagonal - distance - place.streamed;
      if (column >= 0 && column < kStreamed)
        sum_ += static_cast<double>(grads[r * kStreamed + column]);
    }
  }

  const DistanceArguments& arguments_;
  const BackwardProblem& p_;
  int h_;
  int64_t first_;     // distance of the block's
  double sum_ = 0.0;  // of the thread's distance
};

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    distance_sums_kernel(ATTN_ARGUMENTS const DistanceArguments arguments) {
  if constexpr (kIsServed<RareElement>) DistanceSums(arguments).run();
}

// The sum over the lanes of a warp, in an order that does not change.
ATTN_DEVICE double warp_sum(double x) {
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// A warp for each entry of a head's table, and one more for its slope.
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    distance_gradients_kernel(ATTN_ARGUMENTS const DistanceArguments a) {
  const BackwardProblem& p = a.backward.problem;
  const int64_t width = p.grad_table ? p.grad_table.width : 0;
  const int64_t warp = int64_t{block_index().x} * (kThreads / kWarpLanes) + warp_index();
  const int64_t h = warp / (width + 1), entry = warp % (width + 1);
  if (h >= p.Hq) return;
  const bool is_slope = entry == width;
  if (is_slope && !p.grad_slopes) return;
  const int64_t R = width / 2, before_first = a.first - 1, after_last = a.first + a.count;
  // The distances that the entry stands for: its own, or all beyond an end of the table.
  const int64_t begin = is_slope || entry == 0 ? a.first : clamp(entry - R, a.first, after_last);
  const int64_t end =
      is_slope || entry == 2 * R ? after_last : clamp(entry - R + 1, before_first + 1, after_last);
  double sum = 0.0;
  for (int64_t distance = begin + lane(); distance < end; distance += kWarpLanes) {
    const double grad = a.sums[h * a.count + distance - a.first];
    sum += is_slope ? -grad * static_cast<double>(distance < 0 ? -distance : distance) : grad;
  }
  sum = warp_sum(sum);
  if (lane() != 0) return;
  const HeadParameters& to = is_slope ? p.grad_slopes : p.grad_table;
  write_number(to.at(h, is_slope ? 0 : entry), to.dtype, static_cast<float>(sum));
}

}  // namespace attn::cuda
