// What the backward needs of each query row before it recomputes probabilities: its lse to base 2
// and delta = rowsum(dO * O) - dLSE.
//
// Two kinds of rows are then looked at more closely, against their keys. A large lse is too coarse:
// a float32 near 1e6 has lost the logarithm of the number of keys, so the largest score and the
// logarithm of the sum are found anew. And of a row that sees few keys, what is left of dP - delta
// may be less than the rounding of a 16-bit output, so delta is summed from P dP.
#pragma once

#include "cuda/sm80/few_keys.h"
#include "cuda/sm80/query_tile_walk.cuh"

namespace attn::cuda {

// Beyond this a float32 lse may be off by more than 2^-12, and a probability by as large a part.
constexpr float kLargeLse = 4096.0f;
constexpr float kLn2 = 0.6931471805599453f;

ATTN_DEVICE bool is_large(float lse) { return fabsf(lse) > kLargeLse && fabsf(lse) < infinity(); }

constexpr int kRowStatisticsThreads = 128;

// One warp for each row of [B, Hq, Mq].
template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    row_statistics_kernel(ATTN_ARGUMENTS const BackwardArguments a) {
  const BackwardProblem& p = a.problem;
  const int64_t row = int64_t{block_index().x} * (kThreads / kWarpLanes) + warp_index();
  if (row >= p.B * p.Hq * p.Mq) return;
  const int64_t m = row % p.Mq, h = row / p.Mq % p.Hq, b = row / p.Mq / p.Hq;
  const char* out = p.out.row(b, m, h);
  const char* grad_out = p.grad_out.row(b, m, h);
  const int step = static_cast<int>(element_bytes(p.out.dtype));
  float sum = 0.0f;
  for (int c = lane(); c < p.Kv; c += kWarpLanes) {
    sum = fmaf(read_number(out + c * step, p.out.dtype),
               read_number(grad_out + c * step, p.out.dtype), sum);
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane() != 0) return;
  const float lse = p.lse.at<float>(b, h, m);
  p.lse_maximum.at<float>(b, h, m) = lse == -infinity() ? infinity() : lse * kLog2E;
  p.lse_rest.at<float>(b, h, m) = 0.0f;
  a.delta.at<float>(b, h, m) = p.grad_lse ? sum - p.grad_lse.at<float>(b, h, m) : sum;
}

// A lane's part of the online softmax of one row: its sum is `total` times 2^(maximum + excess).
//
// The maximum is a rounded score. Kernels round the difference from it instead of the score, and of
// scores beyond 2^24 that may be far above 0, or below: `excess` is the largest.
struct PartialSoftmax {
  float maximum = -infinity(), excess = -infinity(), total = 0.0f;

  // What scores are to be compared with after `most` joined them.
  ATTN_DEVICE float raise(float most) {
    most = fmaxf(maximum, most);
    // With nothing seen yet any finite reference serves.
    const float reference = most == -infinity() ? 0.0f : most;
    excess += maximum - reference;
    maximum = most;
    return reference;
  }
  ATTN_DEVICE void raise_excess(float most) {
    if (!(most > excess)) return;
    total *= exp2_approximate(excess - most);
    excess = most;
  }
  // `above`: a score less the maximum, and no more than the excess.
  ATTN_DEVICE void add(float above) { total += exp2_approximate(above - finite_excess()); }
  // The row's, from its quad's parts.
  ATTN_DEVICE void join_quad() {
    raise(quad_maximum(maximum));
    raise_excess(quad_maximum(excess));
    total = quad_sum(total);
  }
  ATTN_DEVICE void join_sink(float sink) {
    const float above = sink - raise(sink);
    raise_excess(above);
    add(above);
  }
  // P = 2^((score - maximum) - rest).
  ATTN_DEVICE float rest() const { return excess + log2f(total); }

 private:
  ATTN_DEVICE float finite_excess() const { return excess == -infinity() ? 0.0f : excess; }
};

class CloseLook {
 public:
  using Walk = QueryTileWalk<RareElement, kWidestTile, true, true>;
  using Place = typename Walk::Place;
  using Tile = GradientTile<Side::kQueries, Walk::kStreamed, true, true>;
  static constexpr int kStreamed = Walk::kStreamed;

  ATTN_DEVICE explicit CloseLook(const BackwardArguments& arguments)
      : walk_(arguments), p_(arguments.problem) {}

  ATTN_DEVICE void run() {
    QuerySequences sequences(p_, walk_.b, walk_.first_row, Walk::Shape::kStationary);
    RowsOfSequence rows;
    bool is_loaded = false;
    while (sequences.next(rows)) {
      bool is_large_lse[2], sees_few[2];
      for (int r = 0; r < 2; ++r) {
        const Partners partners = partners_of<Side::kQueries>(rows.sequence, rows.index[r]);
        const int seen = partners.end - partners.begin;
        is_large_lse[r] = seen > 0 && is_large(lse(r));
        sees_few[r] = seen > 0 && seen <= kFewKeys && element_bytes(p_.out.dtype) == 2;
      }
      int* const flag = walk_.memory.flag();
      const bool splits = any_of_block(is_large_lse[0] || is_large_lse[1], flag);
      const bool sums = any_of_block(sees_few[0] || sees_few[1], flag);
      if ((splits || sums) && !is_loaded) {
        walk_.load();
        is_loaded = true;
      }
      if (splits) split_lses(rows, is_large_lse);
      if (sums) sum_deltas(rows, sees_few);
    }
    wait_for_copies<0>();
  }

 private:
  ATTN_DEVICE float lse(int r) const { return p_.lse.at<float>(walk_.b, walk_.h, walk_.row(r)); }

  ATTN_DEVICE void split_lses(const RowsOfSequence& rows, const bool (&is_wanted)[2]) const {
    PartialSoftmax softmax[2];
    walk_.each_key_tile(rows, [&](const Place& place, BlocksSeen blocks, int stage) {
      if (!place.pairs_any(kStreamed)) return;
      Sums<kStreamed> products;
      multiply_rows(&products, walk_.memory.stationary().score, warp_index() * 16,
                    walk_.memory.streamed(stage).score, static_cast<int>(p_.K));
      float terms[4 * Tile::kBlocks];
      Tile::load_terms(terms, place, blocks);
      add_scores(products, terms, softmax);
    });
    for (int r = 0; r < 2; ++r) {
      softmax[r].join_quad();
      if (is_wanted[r] && lane() % 4 == 0) store_split(softmax[r], r);
    }
  }

  ATTN_DEVICE void add_scores(const Sums<kStreamed>& products,
                              const float (&terms)[4 * Tile::kBlocks],
                              PartialSoftmax (&softmax)[2]) const {
    const ScoreFactors factors(p_);
    const auto above = [&](int at, float maximum) {
      float cap_slope;
      return Tile::score_above(products.values[at / 4][at % 4], terms[at], maximum, factors,
                               cap_slope);
    };
    float most[2] = {-infinity(), -infinity()}, excess[2] = {-infinity(), -infinity()};
#pragma unroll
    for (int at = 0; at < 4 * Tile::kBlocks; ++at) {
      most[at % 4 / 2] = fmaxf(most[at % 4 / 2], above(at, 0.0f));
    }
    const float reference[2] = {softmax[0].raise(most[0]), softmax[1].raise(most[1])};
#pragma unroll
    for (int at = 0; at < 4 * Tile::kBlocks; ++at) {
      const int r = at % 4 / 2;
      excess[r] = fmaxf(excess[r], above(at, reference[r]));
    }
    for (int r = 0; r < 2; ++r) softmax[r].raise_excess(excess[r]);
#pragma unroll
    for (int at = 0; at < 4 * Tile::kBlocks; ++at) {
      const int r = at % 4 / 2;
      softmax[r].add(above(at, reference[r]));
    }
  }

  ATTN_DEVICE void store_split(PartialSoftmax softmax, int r) const {
    if (p_.sink) {
      softmax.join_sink(kLog2E * read_number(p_.sink.at(walk_.h), p_.sink.dtype));
    }
    const float rest = softmax.rest();
    // A caller may give the lse of more keys than these, of which the row then has its share.
    const float rounding = 8.0f * 0x1p-23f * fabsf(lse(r));
    if (!(fabsf((softmax.maximum + rest) * kLn2 - lse(r)) <= rounding)) return;
    p_.lse_maximum.at<float>(walk_.b, walk_.h, walk_.row(r)) = softmax.maximum;
    p_.lse_rest.at<float>(walk_.b, walk_.h, walk_.row(r)) = rest;
  }

  ATTN_DEVICE void sum_deltas(const RowsOfSequence& rows, const bool (&is_wanted)[2]) const {
    synchronise_block();  // other lanes of the quad have written the split lses
    RowStatistics statistics[2] = {walk_.statistics_of(0), walk_.statistics_of(1)};
    float sums[2] = {0.0f, 0.0f};
    for (int r = 0; r < 2; ++r) statistics[r].delta = 0.0f;
    walk_.each_key_tile(rows, [&](const Place& place, BlocksSeen blocks, int stage) {
      if (!place.pairs_any(kStreamed)) return;
      const auto queries = walk_.memory.stationary(), keys = walk_.memory.streamed(stage);
      Tile tile;
      multiply_rows(&tile.probabilities, queries.score, warp_index() * 16, keys.score,
                    static_cast<int>(p_.K));
      multiply_rows(&tile.grad_scores, queries.value, warp_index() * 16, keys.value,
                    static_cast<int>(p_.Kv));
      tile.template differentiate<false>(place, blocks,
                                         [&](int, int e) { return statistics[e / 2]; });
#pragma unroll
      for (int at = 0; at < 4 * Tile::kBlocks; ++at) {
        sums[at % 4 / 2] += tile.grad_scores.values[at / 4][at % 4];
      }
    });
    for (int r = 0; r < 2; ++r) {
      float delta = quad_sum(sums[r]);
      if (!is_wanted[r] || lane() % 4 != 0) continue;
      if (p_.grad_lse) delta -= p_.grad_lse.at<float>(walk_.b, walk_.h, walk_.row(r));
      walk_.a.delta.template at<float>(walk_.b, walk_.h, walk_.row(r)) = delta;
    }
  }

  const Walk walk_;
  const BackwardProblem& p_;
};

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    close_look_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<RareElement>) CloseLook(arguments).run();
}

}  // namespace attn::cuda
