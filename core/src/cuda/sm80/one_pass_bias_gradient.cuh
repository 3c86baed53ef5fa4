// The gradient of a bias tensor that repeats over batch elements or heads, from the tiles of the
// backward in one pass: a block of threads owns one tile of the bias and sums dS over all that
// share it, in a fixed order.
#pragma once

#include "cuda/sm80/one_pass_tiles.cuh"

namespace attn::cuda {

template <class Element, int kWidth>
class OnePassBias {
 public:
  ATTN_DEVICE explicit OnePassBias(const BackwardArguments& arguments)
      : tiles_(arguments), p_(tiles_.p) {
    int64_t block = block_index().x;
    const auto take = [&](int64_t count) {
      const int64_t index = block % count;
      block /= count;
      return static_cast<int>(index);
    };
    own_.key = take((p_.Mkv + Tiles::kKeys - 1) / Tiles::kKeys) * Tiles::kKeys;
    own_.query = take((p_.Mq + Tiles::kQueries - 1) / Tiles::kQueries) * Tiles::kQueries;
    own_.h = take(p_.grad_bias_sums_h ? 1 : p_.Hq);
    own_.b = take(p_.grad_bias_sums_b ? 1 : p_.B);
  }

  ATTN_DEVICE void run() {
#pragma unroll
    for (int m = 0; m < Tiles::kRowTiles; ++m) sums_[m].clear();
    if (thread_index() == 0) tiles_.note_band();
    synchronise_block();
    if (sees_any()) add_all();
    synchronise_block();  // nobody reads keys any more, where dS is put now
    tiles_.share(tiles_.memory.grad_scores(), sums_);
    synchronise_block();
    tiles_.store_score_gradients(p_.grad_bias, own_);
  }

 private:
  using Tiles = OnePassTiles<Element, kWidth, true>;
  using Memory = typename Tiles::Memory;
  static_assert(Memory::kBytes + Memory::kBiasBytes + Memory::Rows::bytes(Memory::kKeys) ==
                one_pass_bias_shared_bytes(kWidth));

  // Whether the band lets any of the queries see any of the keys.
  ATTN_DEVICE bool sees_any() const {
    const int rows = static_cast<int>(p_.Mq) - own_.query;
    const KeySpan span =
        key_span<1>(tiles_.band_of(own_.query), rows < Tiles::kQueries ? rows : Tiles::kQueries);
    return span.begin < own_.key + Tiles::kKeys && own_.key < span.end;
  }

  // While one batch element and head is differentiated the next is copied.
  ATTN_DEVICE void add_all() {
    const int heads = static_cast<int>(p_.grad_bias_sums_h ? p_.Hq : 1);
    int left = static_cast<int>(p_.grad_bias_sums_b ? p_.B : 1) * heads, stage = 0;
    OnePassPlace place = own_;
    tiles_.load_biases(place);
    load(0, place);
    commit_copies();
#pragma unroll 1
    for (; left > 0; --left) {
      wait_for_copies<0>();
      synchronise_block();
      OnePassPlace next = place;
      if (++next.h == own_.h + heads) {
        next.h = own_.h;
        ++next.b;
      }
      if (left > 1) {
        load(stage ^ 1, next);
        commit_copies();
      }
      add(stage, place);
      place = next;
      stage ^= 1;
    }
    bool has_nan = false;
#pragma unroll
    for (int m = 0; m < Tiles::kRowTiles; ++m) has_nan |= sums_[m].has_nan();
    if (has_nan) tiles_.a.redo_bias[own_.b * p_.Hq + own_.h] = 1;
  }

  ATTN_DEVICE void load(int stage, const OnePassPlace& place) const {
    tiles_.load_keys(stage, place.b, place.h / static_cast<int>(p_.G), place.key);
    tiles_.load_queries(stage, place.b, place.h, place.query);
  }

  ATTN_DEVICE void add(int stage, const OnePassPlace& place) {
    typename Tiles::WarpSums probabilities, gradients;
    tiles_.find_probabilities(probabilities, stage, place);
    tiles_.find_score_gradients(gradients, probabilities, stage, place);
#pragma unroll
    for (int m = 0; m < Tiles::kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Tiles::kWarpColumns / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums_[m].values[n][e] += gradients[m].values[n][e];
      }
    }
  }

  const Tiles tiles_;
  const BackwardProblem& p_;
  OnePassPlace own_;  // 0 along summed axes
  typename Tiles::WarpSums sums_;
};

template <class Element, int kWidth>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kOnePassThreads, 1)
    one_pass_bias_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kCompiledCapability >= 80) OnePassBias<Element, kWidth>(arguments).run();
}

}  // namespace attn::cuda
