// dK and dV: a block of threads owns a tile of key rows, and adds what every query that sees them
// gives, in a fixed order. A bias that repeats along no axis gets its gradient in the same pass.
#pragma once

#include "cuda/sm80/key_tile_walk.cuh"

namespace attn::cuda {

template <class Element, int kWidth, bool kExtended, bool kPositions>
class KeyGradients {
 public:
  using Shape = GradientShape<Element, kWidth>;
  using Walk = KeyTileWalk<Element, kWidth, kExtended, Shape::kAtOnce, kPositions>;

  ATTN_DEVICE explicit KeyGradients(const BackwardArguments& arguments)
      : p_(arguments.problem),
        redo_(arguments.redo_keys),
        walk_(arguments, block_index().x % tiles(arguments.problem) * Shape::kStationary) {
    const int64_t heads = block_index().x / tiles(p_);
    key_head_ = static_cast<int>(heads % p_.Hkv);
    b_ = heads / p_.Hkv;
    number_ = block_index().x + block_index().y * tiles(p_) * p_.Hkv * p_.B;
    // Where registers hold one of the two sums, a block of its own has the other.
    sums_keys_ = p_.grad_key && (Shape::kSumsBoth || block_index().y == 0);
    sums_values_ = p_.grad_value && (Shape::kSumsBoth || block_index().y == 1);
    stores_bias_ = kExtended && arguments.stores_grad_bias && block_index().y == 0;
  }

  ATTN_DEVICE void run() {
    const bool is_idle = !sums_keys_ && !sums_values_ && !stores_bias_;
    if constexpr (kExtended) {
      if (is_idle || (redo_ && redo_[number_] == 0)) return;
    } else if (is_idle) {
      return leave_word(false);
    }
    walk_.load(b_, key_head_);
    first_sums_.clear();
    if constexpr (Shape::kSumsBoth) value_sums_.clear();
    KeySequences sequences = walk_.sequences(b_);
    RowsOfSequence rows;
#pragma unroll 1
    while (sequences.next(rows)) {
      const typename Walk::Range range(rows);
#pragma unroll 1
      for (int g = 0; g < p_.G; ++g) {
        walk_.each_query_tile(rows, static_cast<int>(key_head_ * p_.G) + g, range,
                              [&](const Place& place, BlocksSeen blocks, const Queries& queries) {
                                add_tile(place, blocks, queries);
                              });
      }
    }
    wait_for_copies<0>();
    store();
    if constexpr (!kExtended) {
      bool has_nan = first_sums_.has_nan();
      if constexpr (Shape::kSumsBoth) has_nan |= value_sums_.has_nan();
      leave_word(any_of_block(has_nan, walk_.memory.flag()));
    }
  }

 private:
  using Place = typename Walk::Place;
  using Queries = typename Walk::Queries;
  using Tile = typename Walk::Tile;

  ATTN_DEVICE static int64_t tiles(const Problem& p) {
    return (p.Mkv + Shape::kStationary - 1) / Shape::kStationary;
  }

  ATTN_DEVICE void leave_word(bool redo) const {
    if (thread_index() == 0) redo_[number_] = redo;
  }

  ATTN_DEVICE void add_tile(const Place& place, BlocksSeen blocks, const Queries& queries) {
    if (!place.pairs_any(Shape::kAtOnce)) return;
    const auto& tiles = queries.tiles;
    Tile tile;
    walk_.template differentiate<true>(tile, place, blocks, queries, sums_keys_ || stores_bias_);
    if constexpr (kExtended) {
      if (stores_bias_) store_bias(tile, place);
    }
    if constexpr (Shape::kSumsBoth) {
      if (sums_values_) {
        add_rows<kExtended>(value_sums_, tile.probabilities, tiles.value, tile.is_masked);
      }
      if (sums_keys_) {
        add_rows<kExtended>(first_sums_, tile.grad_scores, tiles.score, tile.is_masked);
      }
    } else {
      if (sums_keys_) {
        add_rows<kExtended>(first_sums_, tile.grad_scores, tiles.score, tile.is_masked);
      } else if (sums_values_) {
        add_rows<kExtended>(first_sums_, tile.probabilities, tiles.value, tile.is_masked);
      }
    }
  }

  // Nobody else writes these elements; those of pairs that the band excludes were cleared before.
  ATTN_DEVICE void store_bias(const Tile& tile, const Place& place) const {
    const Scores& to = p_.grad_bias;
#pragma unroll
    for (int n = 0; n < Tile::kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!place.is_paired(n, e)) continue;
        char* at = to.row(b_, place.h, place.query(n, e)) +
                   place.key(n, e) * to.stride_n * element_bytes(to.dtype);
        write_number(at, to.dtype, tile.grad_scores.values[n][e]);
      }
    }
  }

  ATTN_DEVICE void store() const {
    if (sums_keys_) {
      store_sums<Element>(first_sums_, p_.grad_key, b_, key_head_, walk_.first_row, p_.Mkv, p_.K,
                          static_cast<float>(p_.scale));
    }
    if (!sums_values_) return;
    if constexpr (Shape::kSumsBoth) {
      store_sums<Element>(value_sums_, p_.grad_value, b_, key_head_, walk_.first_row, p_.Mkv, p_.Kv,
                          1.0f);
    } else {
      store_sums<Element>(first_sums_, p_.grad_value, b_, key_head_, walk_.first_row, p_.Mkv, p_.Kv,
                          1.0f);
    }
  }

  const BackwardProblem& p_;
  int32_t* const redo_;
  const Walk walk_;
  int key_head_;
  int64_t b_, number_;  // number_: of the block
  bool sums_keys_, sums_values_, stores_bias_;
  Sums<kWidth> first_sums_;  // of dK, or of the only one
  Sums<Shape::kSumsBoth ? kWidth : 8> value_sums_;
};

template <class Element, int kWidth, bool kExtended, bool kPositions = false>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS((GradientShape<Element, kWidth>::kThreads), 1)
    key_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<Element>) {
    KeyGradients<Element, kWidth, kExtended, kPositions>(arguments).run();
  }
}

}  // namespace attn::cuda
