// The gradient of a bias tensor: dS, summed over the axes that the bias broadcasts.
//
// A block of threads owns one tile of the bias and visits every tile of scores that it was
// broadcast to, in a fixed order.
#pragma once

#include "cuda/sm80/key_tile_walk.cuh"

namespace attn::cuda {

// Along each axis, the blocks of threads: 1 where one takes it all.
struct BiasBlocks {
  int64_t keys, queries, heads, batch;
};

ATTN_INLINE constexpr BiasBlocks bias_blocks(const BackwardProblem& p) {
  constexpr int kStreamed = RareShape::kStreamed;
  return {tiles_of<RareShape>(p.Mkv), p.grad_bias_sums_m ? 1 : (p.Mq + kStreamed - 1) / kStreamed,
          p.grad_bias_sums_h ? 1 : p.Hq, p.grad_bias_sums_b ? 1 : p.B};
}

// Own index along an axis, or all.
struct OwnOrAll {
  int64_t begin, end;

  ATTN_DEVICE OwnOrAll(bool sums, int64_t own, int64_t extent)
      : begin(sums ? 0 : own), end(sums ? extent : own + 1) {}
};

class BiasGradient {
 public:
  static constexpr int kStreamed = RareShape::kStreamed;
  using Walk = KeyTileWalk<RareElement, kWidestTile, true, kStreamed, true>;

  ATTN_DEVICE explicit BiasGradient(const BackwardArguments& arguments)
      : p_(arguments.problem),
        redo_(arguments.redo_bias),
        blocks_(bias_blocks(arguments.problem)),
        walk_(arguments, block_index().x % blocks_.keys * RareShape::kStationary) {
    int64_t block = block_index().x / blocks_.keys;
    first_query_ = block % blocks_.queries * kStreamed;
    block /= blocks_.queries;
    h_ = block % blocks_.heads;
    b_ = block / blocks_.heads;
  }

  ATTN_DEVICE void run() {
    if (redo_ && redo_[b_ * p_.Hq + h_] == 0) return;
    sums_.clear();
    const OwnOrAll batch(p_.grad_bias_sums_b, b_, p_.B);
    const OwnOrAll heads(p_.grad_bias_sums_h, h_, p_.Hq);
    for (int64_t b = batch.begin; b < batch.end; ++b) {
      for (int64_t h = heads.begin; h < heads.end; ++h) {
        if (h == heads.begin || h % p_.G == 0) walk_.load(b, h / p_.G);
        add_head(b, static_cast<int>(h));
      }
    }
    wait_for_copies<0>();
    store();
  }

 private:
  using Place = Walk::Place;
  using Queries = Walk::Queries;
  using Tile = Walk::Tile;

  ATTN_DEVICE void add_head(int64_t b, int h) {
    KeySequences sequences = walk_.sequences(b);
    RowsOfSequence rows;
    while (sequences.next(rows)) {
      Walk::Range range(rows);
      if (!p_.grad_bias_sums_m) {
        // The tile of queries as it lies in memory, where the sequence has some of it.
        const int64_t tile = first_query_ - rows.sequence.q_begin;
        if (tile + kStreamed <= range.begin || tile >= range.end) continue;
        range.begin = static_cast<int>(tile);
        range.end = range.begin + 1;
      }
      walk_.each_query_tile(rows, h, range,
                            [&](const Place& place, BlocksSeen blocks, const Queries& queries) {
                              if (place.pairs_any(kStreamed)) add_tile(place, blocks, queries);
                            });
    }
  }

  ATTN_DEVICE void add_tile(const Place& place, BlocksSeen blocks, const Queries& queries) {
    Tile tile;
    walk_.differentiate<false>(tile, place, blocks, queries, true);
#pragma unroll
    for (int n = 0; n < Tile::kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums_.values[n][e] += tile.grad_scores.values[n][e];
    }
  }

  ATTN_DEVICE void store() const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < Tile::kBlocks; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          const int64_t query = first_query_ + Place::own_column(n, e);
          if (p_.grad_bias_sums_m) {
            total += sums_.values[n][e];
          } else if (query < p_.Mq) {
            store_number(query, r, sums_.values[n][e]);
          }
        }
      }
      if (!p_.grad_bias_sums_m) continue;
      total = quad_sum(total);
      if (lane() % 4 == 0) store_number(0, r, total);
    }
  }

  ATTN_DEVICE void store_number(int64_t query, int r, float x) const {
    const Scores& to = p_.grad_bias;
    const int64_t key = walk_.first_row + own_row(r);
    if (key >= p_.Mkv) return;
    write_number(to.row(b_, h_, query) + key * to.stride_n * element_bytes(to.dtype), to.dtype, x);
  }

  const BackwardProblem& p_;
  const int32_t* const redo_;
  const BiasBlocks blocks_;
  const Walk walk_;
  int64_t first_query_, h_, b_;
  Sums<kStreamed> sums_;  // rows are keys
};

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    bias_gradient_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<RareElement>) BiasGradient(arguments).run();
}

}  // namespace attn::cuda
