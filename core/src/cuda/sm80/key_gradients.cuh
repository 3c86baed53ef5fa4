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
        walk_(arguments, int64_t{block() % tiles(arguments.problem)} * Shape::kStationary) {
    const uint32_t head = block() / tiles(p_), heads = static_cast<uint32_t>(p_.Hkv);
    key_head_ = static_cast<int>(head % heads);
    b_ = head / heads;
    number_ = block() + block_index().y * tiles(p_) * p_.Hkv * p_.B;
    // Where registers hold one of the two sums, a block of its own has the other.
    sums_keys_ = p_.grad_key && (Shape::kSumsBoth || block_index().y == 0);
    sums_values_ = p_.grad_value && (Shape::kSumsBoth || block_index().y == 1);
    stores_bias_ = kExtended && arguments.stores_grad_bias && block_index().y == 0;
  }

  // How queries are to be read at first, if at all.
  ATTN_DEVICE RowsRead first() const {
    const bool is_idle = !sums_keys_ && !sums_values_ && !stores_bias_;
    return is_idle ? RowsRead::kNoMore : first_read<kExtended>(redo_, number_);
  }

  // Returns how they are to be read next, if once more.
  ATTN_DEVICE RowsRead run(RowsRead read) {
    read_ = read;
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
    const bool has_nan = read == RowsRead::kAsTheyAre && block_has_nan();
    if (kExtended && has_nan) return RowsRead::kFiniteOnly;
    if (!kExtended && thread_index() == 0) redo_[number_] = has_nan;
    store();
    return read_after(read);
  }

 private:
  using Place = typename Walk::Place;
  using Queries = typename Walk::Queries;
  using Tile = typename Walk::Tile;

  // Divided in 32 bits, which is much the quicker.
  ATTN_DEVICE static uint32_t block() { return static_cast<uint32_t>(block_index().x); }
  ATTN_DEVICE static uint32_t tiles(const Problem& p) {
    return static_cast<uint32_t>(tiles_of<Shape>(p.Mkv));
  }

  ATTN_DEVICE bool block_has_nan() const {
    bool has_nan = first_sums_.has_nan();
    if constexpr (Shape::kSumsBoth) has_nan |= value_sums_.has_nan();
    return any_of_block(has_nan, walk_.memory.flag());
  }

  ATTN_DEVICE void add_tile(const Place& place, BlocksSeen blocks, const Queries& queries) {
    if (read_ == RowsRead::kAsTheyAre && !place.pairs_any(Shape::kAtOnce)) return;
    const auto& tiles = queries.tiles;
    Tile tile;
    walk_.template differentiate<true>(tile, place, blocks, queries, sums_keys_ || stores_bias_);
    if constexpr (kExtended) {
      if (stores_bias_) store_bias(tile, place);
    }
    if constexpr (Shape::kSumsBoth) {
      if (sums_values_) add(value_sums_, tile.probabilities, tiles.value);
      if (sums_keys_) add(first_sums_, tile.grad_scores, tiles.score);
    } else {
      if (sums_keys_) {
        add(first_sums_, tile.grad_scores, tiles.score);
      } else if (sums_values_) {
        add(first_sums_, tile.probabilities, tiles.value);
      }
    }
  }

  template <class Weights, class Rows>
  ATTN_DEVICE void add(Sums<kWidth>& sums, Weights& weights, const Rows& right) const {
    add_rows<kExtended, Shape>(sums, weights, right, read_, walk_.a.keeps_rests);
  }

  // Nobody else writes these elements; those of pairs that the band excludes were cleared before.
  ATTN_DEVICE void store_bias(const Tile& tile, const Place& place) const {
    const Scores& to = p_.grad_bias;
    float grads[4 * Tile::kBlocks];  // in local memory, so that the code is there once
    tile.grad_scores.copy_to(grads);
#pragma unroll 1
    for (int at = 0; at < 4 * Tile::kBlocks; ++at) {
      const int n = at / 4, e = at % 4;
      if (!place.is_paired(n, e)) continue;
      write_number(to.row(b_, place.h, place.query(n, e)) +
                       place.key(n, e) * to.stride_n * element_bytes(to.dtype),
                   to.dtype, grads[at]);
    }
  }

  ATTN_DEVICE void store() const {
    const float scale = static_cast<float>(p_.scale);
    if constexpr (Shape::kSumsBoth) {
      if (sums_keys_) store(first_sums_, p_.grad_key, p_.K, scale);
      if (sums_values_) store(value_sums_, p_.grad_value, p_.Kv, 1.0f);
    } else if (sums_keys_ || sums_values_) {
      store(first_sums_, sums_keys_ ? p_.grad_key : p_.grad_value, sums_keys_ ? p_.K : p_.Kv,
            sums_keys_ ? scale : 1.0f);
    }
  }

  ATTN_DEVICE void store(const Sums<kWidth>& sums, const HeadRows& to, int64_t width,
                         float factor) const {
    store_sums(walk_.memory.base, sums, to, b_, key_head_, walk_.first_row, p_.Mkv, width, factor,
               read_);
  }

  const BackwardProblem& p_;
  int32_t* const redo_;
  const Walk walk_;
  int key_head_;
  int64_t b_, number_;  // number_: of the block
  bool sums_keys_, sums_values_, stores_bias_;
  RowsRead read_ = RowsRead::kAsTheyAre;  // of queries and gradients of outputs
  Sums<kWidth> first_sums_;               // of dK, or of the only one
  Sums<Shape::kSumsBoth ? kWidth : 8> value_sums_;
};

template <class Element, int kWidth, bool kExtended, bool kPositions = false>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS((GradientShape<Element, kWidth>::kThreads), 1)
    key_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  if constexpr (kIsServed<Element>) {
    KeyGradients<Element, kWidth, kExtended, kPositions> gradients(arguments);
    read_rows<kExtended>(gradients.first(), [&](RowsRead read) { return gradients.run(read); });
  }
}

}  // namespace attn::cuda
