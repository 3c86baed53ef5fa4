// dK and dV: a block of threads owns a tile of key rows, and adds what every query that sees them
// gives, in a fixed order.
#pragma once

#include "cuda/sm80/streamed_tiles.cuh"

namespace attn::cuda {

template <class Element, int kWidth, bool kExtended>
class KeyGradients {
 public:
  using Shape = GradientShape<Element, kWidth>;
  using Memory = TileMemory<Element, kWidth>;
  using Tile = RowTile<Element, kWidth>;
  static constexpr int kStreamed = Shape::kStreamed;

  ATTN_DEVICE explicit KeyGradients(const BackwardArguments& arguments)
      : a_(arguments), p_(arguments.problem), memory_{shared_memory()} {
    const int64_t tiles = (p_.Mkv + Shape::kStationary - 1) / Shape::kStationary;
    const int64_t block = block_index().x;
    number_ = block + block_index().y * tiles * p_.Hkv * p_.B;
    first_row_ = block % tiles * Shape::kStationary;
    key_head_ = static_cast<int>(block / tiles % p_.Hkv);
    b_ = block / tiles / p_.Hkv;
    // Where registers hold one of the two sums, a block of its own has the other.
    sums_keys_ = p_.grad_key && (Shape::kSumsBoth || block_index().y == 0);
    sums_values_ = p_.grad_value && (Shape::kSumsBoth || block_index().y == 1);
  }

  ATTN_DEVICE void run() {
    const bool is_idle = !sums_keys_ && !sums_values_;
    if constexpr (kExtended) {
      if (is_idle || (a_.redo_keys && a_.redo_keys[number_] == 0)) return;
    } else if (is_idle) {
      return leave_word(false);
    }
    load_keys<Shape>(memory_.stationary(), Shape::kStationary, a_, b_, key_head_, [&](int r) {
      return first_row_ + r < p_.Mkv ? first_row_ + r : int64_t{-1};
    });
    first_sums_.clear();
    if constexpr (Shape::kSumsBoth) value_sums_.clear();
    KeySequences sequences(p_, b_, first_row_, Shape::kStationary, memory_.flag());
    RowsOfSequence rows;
#pragma unroll 1
    while (sequences.next(rows)) {
#pragma unroll 1
      for (int g = 0; g < p_.G; ++g) add_queries(rows, static_cast<int>(key_head_ * p_.G) + g);
    }
    wait_for_copies<0>();
    store();
    if constexpr (!kExtended) {
      bool has_nan = first_sums_.has_nan();
      if constexpr (Shape::kSumsBoth) has_nan |= value_sums_.has_nan();
      leave_word(any_of_block(has_nan, memory_.flag()));
    }
  }

 private:
  using Place = TilePlace<Side::kKeys>;

  ATTN_DEVICE void leave_word(bool redo) const {
    if (thread_index() == 0) a_.redo_keys[number_] = redo;
  }

  // The queries of one head and sequence.
  ATTN_DEVICE void add_queries(const RowsOfSequence& rows, int h) {
    const Sequence& s = rows.sequence;
    const TileRange<Side::kKeys, kStreamed> range(rows);
    Place place{p_, rows, first_row_, h, 0, {}};
    for (int r = 0; r < 2; ++r) place.partners[r] = partners_of<Side::kKeys>(s, rows.index[r]);
    const auto next = [&](int tile) {
      if constexpr (kExtended) {
        while (tile < range.end && blocks_of(rows, h, tile) == BlocksSeen::kNone) tile += kStreamed;
      }
      return tile < range.end ? tile : kNoTile;
    };
    const auto load = [&](int stage, int tile) { load_queries_of(s, h, stage, tile); };
    const auto compute = [&](int stage, int tile) {
      place.streamed = tile;
      if (place.pairs_any(kStreamed)) add_tile(place, stage);
    };
    stream_tiles<Shape>(range.begin, next, load, compute);
  }

  ATTN_DEVICE BlocksSeen blocks_of(const RowsOfSequence& rows, int h, int tile) const {
    return blocks_of_tile<Side::kKeys, kStreamed>(p_, rows, h, tile);
  }

  ATTN_DEVICE void load_queries_of(const Sequence& s, int h, int stage, int tile) {
    load_queries<Shape>(memory_.streamed(stage), kStreamed, a_, s.b, h, [&](int r) {
      return tile + r < s.Mq ? s.q_begin + tile + r : int64_t{-1};
    });
    float* statistics = memory_.statistics(stage);
    for (int at = thread_index(); at < 3 * kStreamed; at += Shape::kThreads) {
      const int which = at / kStreamed, i = tile + at % kStreamed;
      const RowScalars& from = which == 0   ? p_.lse_maximum
                               : which == 1 ? p_.lse_rest
                                            : a_.delta;
      const bool present = i < s.Mq;
      copy_async<4>(statistics + at,
                    present ? &from.template at<float>(s.b, h, s.q_begin + i) : nullptr, present);
    }
  }

  ATTN_DEVICE void add_tile(const Place& place, int stage) {
    const auto keys = memory_.stationary(), queries = memory_.streamed(stage);
    const int warp_row = warp_index() * 16;
    GradientTile<Side::kKeys, kStreamed, kExtended> tile;
    multiply_rows<true>(tile.probabilities, keys.score, warp_row, queries.score);
    if (sums_keys_) {
      multiply_rows<true>(tile.grad_scores, keys.value, warp_row, queries.value);
    } else {
      tile.grad_scores.clear();
    }
    const float* statistics = memory_.statistics(stage);
    const BlocksSeen blocks =
        kExtended ? blocks_of(place.rows, place.h, place.streamed) : BlocksSeen::kAll;
    tile.template differentiate<true>(place, blocks, [&](int n, int e) {
      const int column = Place::own_column(n, e);
      return RowStatistics{statistics[column], statistics[kStreamed + column],
                           statistics[2 * kStreamed + column]};
    });
    if constexpr (Shape::kSumsBoth) {
      if (sums_values_) {
        add_rows<kExtended>(value_sums_, tile.probabilities, queries.value, tile.is_masked);
      }
      if (sums_keys_) {
        add_rows<kExtended>(first_sums_, tile.grad_scores, queries.score, tile.is_masked);
      }
    } else {
      if (sums_keys_) {
        add_rows<kExtended>(first_sums_, tile.grad_scores, queries.score, tile.is_masked);
      } else {
        add_rows<kExtended>(first_sums_, tile.probabilities, queries.value, tile.is_masked);
      }
    }
  }

  ATTN_DEVICE void store() const {
    if (sums_keys_) {
      store_sums<Element>(first_sums_, p_.grad_key, b_, key_head_, first_row_, p_.Mkv, p_.K,
                          static_cast<float>(p_.scale));
    }
    if (!sums_values_) return;
    if constexpr (Shape::kSumsBoth) {
      store_sums<Element>(value_sums_, p_.grad_value, b_, key_head_, first_row_, p_.Mkv, p_.Kv,
                          1.0f);
    } else {
      store_sums<Element>(first_sums_, p_.grad_value, b_, key_head_, first_row_, p_.Mkv, p_.Kv,
                          1.0f);
    }
  }

  const BackwardArguments& a_;
  const BackwardProblem& p_;
  const Memory memory_;
  int64_t number_;  // of the block
  int64_t first_row_, b_;
  int key_head_;
  bool sums_keys_, sums_values_;
  Sums<kWidth> first_sums_;                               // of dK, or of the only one
  Sums<Shape::kSumsBoth ? kWidth : 8> value_sums_;
};

template <class Element, int kWidth, bool kExtended>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS((GradientShape<Element, kWidth>::kThreads), 1)
    key_gradients_kernel(ATTN_ARGUMENTS const BackwardArguments arguments) {
  KeyGradients<Element, kWidth, kExtended>(arguments).run();
}

}  // namespace attn::cuda
