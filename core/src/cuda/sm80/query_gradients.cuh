// dQ: a block of threads owns a tile of query rows of one head, and adds what every key that they
// see gives, in a fixed order.
#pragma once

#include "cuda/sm80/query_tile_walk.cuh"

namespace attn::cuda {

// Returns how keys are to be read next, if once more.
template <class Element, int kWidth, bool kExtended, bool kPositions>
ATTN_DEVICE RowsRead find_query_gradients(const BackwardArguments& arguments, RowsRead read) {
  using Walk = QueryTileWalk<Element, kWidth, kExtended, kPositions>;
  using Shape = typename Walk::Shape;
  constexpr int kStreamed = Walk::kStreamed;
  const Walk walk(arguments);
  const BackwardProblem& p = walk.p;
  synchronise_block();
  walk.load();
  const RowStatistics statistics[2] = {walk.statistics_of(0), walk.statistics_of(1)};
  Sums<kWidth> sums;
  sums.clear();
  QuerySequences sequences(p, walk.b, walk.first_row, Shape::kStationary);
  RowsOfSequence rows;
#pragma unroll 1
  while (sequences.next(rows)) {
    walk.each_key_tile(rows, [&](const typename Walk::Place& place, BlocksSeen blocks, int stage) {
      if (read == RowsRead::kAsTheyAre && !place.pairs_any(kStreamed)) return;
      const auto queries = walk.memory.stationary(), keys = walk.memory.streamed(stage);
      GradientTile<Side::kQueries, kStreamed, kExtended, kPositions> tile;
      const int K = kPositions ? static_cast<int>(p.K) : kWidth;
      const int Kv = kPositions ? static_cast<int>(p.Kv) : kWidth;
      multiply_rows(&tile.probabilities, queries.score, warp_index() * 16, keys.score, K);
      multiply_rows(&tile.grad_scores, queries.value, warp_index() * 16, keys.value, Kv);
      tile.template differentiate<true>(place, blocks,
                                        [&](int, int e) { return statistics[e / 2]; });
      add_rows<kExtended, Shape>(sums, tile.grad_scores, keys.score, read, arguments.keeps_rests);
    });
  }
  wait_for_copies<0>();
  const bool has_nan =
      read == RowsRead::kAsTheyAre && any_of_block(sums.has_nan(), walk.memory.flag());
  if (kExtended && has_nan) return RowsRead::kFiniteOnly;
  if (!kExtended && thread_index() == 0) arguments.redo_queries[block_index().x] = has_nan;
  store_sums(walk.memory.base, sums, p.grad_query, walk.b, walk.h, walk.first_row, p.Mq, p.K,
             static_cast<float>(p.scale), read);
  return read_after(read);
}

template <class Element, int kWidth, bool kExtended, bool kPositions = false>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS((GradientShape<Element, kWidth>::kThreads), 1)
    query_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<Element>) {
    const RowsRead first = first_read<kExtended>(arguments.redo_queries, block_index().x);
    read_rows<kExtended>(first, [&](RowsRead read) {
      return find_query_gradients<Element, kWidth, kExtended, kPositions>(arguments, read);
    });
  }
}

}  // namespace attn::cuda
