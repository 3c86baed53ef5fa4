// One tile of keys of a decoding task: scores, softmax, and the values added to the rows' state.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/decode_by_tiles-inl.h"
#include "cpu/kernels/decode_tiling-inl.h"
#include "cpu/kernels/masked_keys-inl.h"
#include "cpu/kernels/position_row-inl.h"

namespace attn::cpu {
namespace {

// Some keys against the rows of a group of key heads, multiplied by tile registers or by vectors.
//
// Keys are walked in steps, and all heads take a step before the next: the rows of neighbouring
// heads follow each other, so that memory is read in a few long runs.
template <class Op, bool kByTiles>
class DecodeTile {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;
  using Tiling = DecodeTiling<Op>;
  // For vectors probabilities are not rounded: converting values costs no more than pairing them.
  using ValueOp = std::conditional_t<kByTiles, Op, SingleOperand<S>>;

  DecodeTile(const ForwardProblem& p, const Tiling& t, DecodeScratch<Op>& s,
             typename Op::Registers& registers, const Sequence& sequence, KeyRange heads,
             KeyRange keys)
      : p_(p),
        t_(t),
        s_(s),
        registers_(registers),
        sequence_(sequence),
        rows_(p.G * sequence.Mq),
        first_head_(heads.begin),
        heads_(heads.end - heads.begin),
        begin_(keys.begin),
        n_(keys.end - keys.begin) {}

  // Adds the tile to the state; `following` are the keys of the tile after it.
  void attend(KeyRange following) {
    bool any = false;
    for (int64_t head = 0; head < heads_; ++head) {
      s_.masks[head] = sees_any(head) ? TileMask::kAll : TileMask::kNothing;
      any |= s_.masks[head] == TileMask::kAll;
    }
    if (!any) return;
    key_rows(s_.key_rows, p_.key, sequence_, first_head_, begin_, n_);
    key_rows(s_.value_rows, p_.value, sequence_, first_head_, begin_, n_);
    with_source<Op>(p_.key.dtype, [&]<DType kSource>() { score<kSource>(); });
    const MaskedKeys<ValueOp, true> keys(p_, sequence_, {begin_, begin_ + n_}, s_.weights, false);
    for (int64_t head = 0; head < heads_; ++head) {
      if (s_.masks[head] != TileMask::kNothing) softmax(keys, head);
    }
    const int64_t next = following.end - following.begin;
    key_rows(s_.key_rows, p_.key, sequence_, first_head_, following.begin, next);
    with_source<ValueOp>(p_.value.dtype, [&]<DType kSource>() { add_values<kSource>(next); });
  }

 private:
  // What one of the products reads.
  struct Operand {
    const HeadRows& x;
    const char* const* rows;  // of the first head
    int64_t n;                // keys
    int64_t width;

    // A step of it, or what is left of one.
    RowPrefetcher step(int64_t begin, int64_t keys, int64_t heads) const {
      return {x, rows + begin, smaller(keys, n - begin), heads, width};
    }
  };

  Operand keys(int64_t n) const { return {p_.key, s_.key_rows, n, p_.K}; }
  Operand values() const { return {p_.value, s_.value_rows, n_, p_.Kv}; }

  Real* out(int64_t head, int64_t r) {
    return s_.state.out + (head * t_.rows + r) * t_.value_columns;
  }
  Real* scores(int64_t head, int64_t r) {
    return s_.scores + (head * t_.rows + r) * Tiling::kTileKeys;
  }
  // The probabilities take the place of the scores; pairs leave room for rounding residuals.
  typename ValueOp::Unit* units(int64_t head, int64_t r) { return scores(head, r); }
  typename ValueOp::Unit* residuals(int64_t head, int64_t r) {
    return units(head, r) + Tiling::kTileKeys / ValueOp::kDepth;
  }
  static int64_t offset(const HeadRows& x, int64_t head) {
    return head * x.stride_h * element_bytes(x.dtype);
  }

  // Whether block sparsity lets any row see keys of the tile.
  bool sees_any(int64_t head) const {
    bool any = !p_.blocks;
    for (int64_t r = 0; r < rows_ && !any; ++r) {
      const QueryRow at = query_row(p_, sequence_, first_head_ + head, r);
      any = sees_blocks(p_.blocks, at.h, at.i, {begin_, begin_ + n_});
    }
    return any;
  }

  // Calls f(head, k, n, rows) with the rows of keys [k, k + n) for each head that sees the tile.
  // Each call has this many slots to prefetch the next step in: of `operand`, or, from its last
  // step, the first one of `then`, before which there are `more` slots.
  template <class F>
  void each_step(const Operand& operand, const Operand& then, int64_t slots, int64_t more, F&& f) {
    const bool prefetches = rows_ > kScoreRows<S> || t_.prefetches_few_rows;
    for (int64_t k = 0; k < n_; k += t_.step_keys) {
      const int64_t n = smaller(t_.step_keys, n_ - k);
      const bool is_last = k + n == n_;
      prefetcher_ =
          is_last ? then.step(0, t_.step_keys, heads_) : operand.step(k + n, t_.step_keys, heads_);
      if (prefetches) prefetcher_.spread_over(heads_ * slots + (is_last ? more : 0));
      for (int64_t head = 0; head < heads_; ++head) {
        if (s_.masks[head] == TileMask::kNothing) {
          prefetcher_.issue(slots);
          continue;
        }
        const char* rows[Tiling::kTileKeys];
        for (int64_t j = 0; j < n; ++j) rows[j] = operand.rows[k + j] + offset(operand.x, head);
        f(head, k, n, rows);
      }
    }
  }

  // Converts rows where they are not whole vectors, or once for many query rows if reading them
  // does not convert them as fast. Returns whether it did; the rows are then of To::kDType and
  // `stride` units.
  template <class To, DType kSource>
  bool convert(const char** rows, int64_t n, int64_t width, int64_t stride, int64_t whole) {
    constexpr bool kReadsAsFast = kSource == To::kDType || S::kWidth >= 8;
    if ((kReadsAsFast || rows_ <= kScoreRows<S>) && width % whole == 0) return false;
    RowPrefetcher none;
    convert_rows<To, kSource>(s_.converted, stride, rows, n, width, none);
    for (int64_t j = 0; j < n; ++j) {
      rows[j] = reinterpret_cast<const char*>(s_.converted + j * stride);
    }
    return true;
  }

  template <DType kSource>
  void score() {
    if constexpr (kByTiles) return score_by_tiles<kSource>();
    if (scores_heads_together()) return score_together<kSource>();
    const int64_t slots = t_.step_keys / S::kWidth * rows_ * (t_.key_units / S::kWidth);
    each_step(keys(n_), values(), slots, softmax_slots(),
              [&](int64_t head, int64_t k, int64_t n, const char** rows) {
                if (convert<Op, kSource>(rows, n, p_.K, t_.key_units, S::kWidth * Op::kDepth)) {
                  score_step<Op::kDType>(head, k, n, rows, t_.key_units * Op::kDepth);
                } else {
                  score_step<kSource>(head, k, n, rows, p_.K);
                }
              });
  }

  template <DType kSource>
  void score_by_tiles() {
    each_step(keys(n_), values(), slots_of_scores_by_tiles(t_.step_keys), softmax_slots(),
              [&](int64_t head, int64_t k, int64_t n, const char** rows) {
                for (int64_t j = 0; j < n; j += kTilesOfKeys<Op>) {
                  const int64_t count = smaller(kTilesOfKeys<Op>, n - j);
                  convert_rows<Op, kSource>(s_.converted, t_.key_units, rows + j, count, p_.K,
                                            prefetcher_);
                  score_keys_by_tiles<Op>(scores(head, 0) + k + j, Tiling::kTileKeys, queries(head),
                                          rows_, s_.converted, t_.key_units, count,
                                          units_of<Op>(p_.K), registers_, prefetcher_);
                }
              });
  }

  bool scores_heads_together() const {
    return rows_ == 1 && heads_ % 2 == 0 && t_.run_bytes <= Tiling::kShortRunBytes &&
           p_.key.stride_h == p_.K && p_.K % (S::kWidth * Op::kDepth) == 0;
  }

  // As many heads at once as may be: memory is then read in the longest runs.
  template <DType kSource, int kHeads = S::kWidth>
  void score_together() {
    if (heads_ % kHeads == 0) return score_heads_at_once<kSource, kHeads>();
    if constexpr (kHeads > 2) score_together<kSource, kHeads / 2>();
  }

  // Scores of all heads, even of those that see nothing of the tile.
  template <DType kSource, int kHeads>
  void score_heads_at_once() {
    constexpr int kKeys = S::kWidth / kHeads;
    const int64_t head_bytes = offset(p_.key, 1);
    for (int64_t k = 0; k < round_up(n_, S::kWidth); k += kKeys) {
      for (int64_t head = 0; head < heads_; head += kHeads) {
        const char* rows[kKeys];
        for (int i = 0; i < kKeys; ++i) {
          rows[i] = s_.key_rows[smaller(k + i, n_ - 1)] + head * head_bytes;
        }
        score_heads<Op, kSource, kHeads>(scores(head, 0) + k, t_.rows * Tiling::kTileKeys,
                                         queries(head), t_.query_units, rows, head_bytes, p_.K);
      }
    }
  }

  template <DType kSource>
  void score_step(int64_t head, int64_t k, int64_t n, const char* const* rows, int64_t width) {
    const auto of_rows = [&]<int kRows>(int64_t r) {
      for (int64_t j = 0; j < round_up(n, S::kWidth); j += S::kWidth / kRows) {
        score_keys<Op, kSource, kRows>(scores(head, r) + k + j, Tiling::kTileKeys,
                                       queries(head) + r * t_.key_units, t_.key_units, rows + j,
                                       n - j, width, prefetcher_);
      }
    };
    int64_t r = 0;
    for (; r + kScoreRows<S> <= rows_; r += kScoreRows<S>) {
      of_rows.template operator()<kScoreRows<S>>(r);
    }
    for (; r < rows_; ++r) of_rows.template operator()<1>(r);
  }

  int64_t softmax_slots() const { return heads_ * rows_ * kRowSlots; }

  const typename Op::Unit* queries(int64_t head) { return s_.queries + head * t_.query_units; }

  void softmax(const MaskedKeys<ValueOp, true>& keys, int64_t head) {
    ScoreRow<ValueOp> weighed[kDecodeRows];
    for (int64_t r = 0; r < rows_; ++r) {
      const QueryRow at = query_row(p_, sequence_, first_head_ + head, r);
      if (p_.positions) {
        load_position_row<S>(s_.positions, p_, {sequence_, at.h, at.i, begin_, n_});
      }
      weighed[r].scores = weighed[r].units = scores(head, r);
      const Real rescale =
          keys.weigh(weighed[r], at, sequence_.keys_of(at.i), p_.positions ? s_.positions : nullptr,
                     s_.state.running[head * t_.rows + r]);
      if (rescale != Real(1)) scale_row<S>(out(head, r), t_.value_columns, rescale);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const QueryRow at = query_row(p_, sequence_, first_head_ + head, r);
      const KeyRange seen = sequence_.keys_of(at.i);
      prefetcher_.issue(kRowSlots);
      keys.exponentiate(weighed[r], at, seen, s_.state.running[head * t_.rows + r]);
      if constexpr (kByTiles) store_residuals(weighed[r], residuals(head, r));
      if (has_score_bias(p_, static_cast<bool>(p_.blocks)) || p_.dropout.enabled ||
          seen.begin > begin_ || seen.end < begin_ + n_) {
        s_.masks[head] = TileMask::kPart;
      }
    }
  }

  // A few outputs do not average roundings out: the residuals of every row are multiplied too.
  void store_residuals(const ScoreRow<Op>& row, typename Op::Unit* to) const {
    const KeyRange seen = row.seen();
    for (int64_t c = 0; c < row.n; c += S::kWidth) {
      const bool is_seen = c >= seen.begin && c < seen.end;
      Op::store_units(to + c / Op::kDepth, is_seen ? S::load(row.residuals + c) : S::set1(0));
    }
  }

  // `following` are the keys of the tile that comes next.
  template <DType kSource>
  void add_values(int64_t following) {
    if constexpr (kByTiles) return add_values_by_tiles<kSource>(following);
    const int64_t blocks = rows_ / kValueRows + rows_ % kValueRows / 4 + rows_ % 4 / 2 + rows_ % 2;
    const int64_t slots = blocks * (t_.value_columns / S::kWidth) * t_.step_keys;
    each_step(values(), keys(following), slots, 0,
              [&](int64_t head, int64_t k, int64_t n, const char** rows) {
                if (s_.masks[head] == TileMask::kPart && !values_finite<kSource>(rows, n)) {
                  add_step_skipping_zeros<kSource>(head, k, n, rows);
                } else if (convert<ValueOp, kSource>(rows, n, p_.Kv, t_.value_columns, S::kWidth)) {
                  add_step<ValueOp::kDType>(head, k, n, rows, t_.value_columns);
                } else {
                  add_step<kSource>(head, k, n, rows, p_.Kv);
                }
              });
  }

  template <DType kSource>
  void add_values_by_tiles(int64_t following) {
    each_step(values(), keys(following), slots_of_packed_values<Op>(t_.step_keys, p_.Kv), 0,
              [&](int64_t head, int64_t k, int64_t n, const char** rows) {
                Product<Op> product;
                product.a = units(head, 0) + k / Op::kDepth;
                product.a_stride = Tiling::kTileKeys;
                product.c = out(head, 0);
                product.c_stride = t_.value_columns;
                product.rows = rows_;
                const auto* const residuals_of_head = residuals(head, 0) + k / Op::kDepth;
                add_packed_values<Op, kSource>(product, residuals_of_head, s_.converted, rows, n,
                                               p_.Kv, registers_, prefetcher_);
              });
  }

  template <DType kSource>
  bool values_finite(const char* const* rows, int64_t n) {
    auto flag = ValueOp::no_flag();
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t c = 0; c < p_.Kv; c += S::kWidth) {
        flag = ValueOp::flag_nonfinite(flag, load_elements<S, kSource>(rows[k], c, p_.Kv));
      }
    }
    return !ValueOp::is_set(flag);
  }

  template <DType kSource>
  void add_step(int64_t head, int64_t k, int64_t n, const char* const* rows, int64_t width) {
    const auto of_rows = [&]<int kRows, int kVectors>(int64_t r) {
      const auto of_columns = [&]<int kCount>(int64_t column) {
        accumulate_values<S, kSource, kRows, kCount>(out(head, r), t_.value_columns,
                                                     scores(head, r) + k, Tiling::kTileKeys, rows,
                                                     n, column, width, prefetcher_);
      };
      int64_t c = 0;
      const auto of_runs = [&]<int kCount>() {
        for (; c + kCount * S::kWidth <= width; c += kCount * S::kWidth) {
          of_columns.template operator()<kCount>(c);
        }
      };
      of_runs.template operator()<kVectors>();
      if constexpr (kVectors > 4) of_runs.template operator()<4>();
      if constexpr (kVectors > 2) of_runs.template operator()<2>();
      of_runs.template operator()<1>();
    };
    int64_t r = 0;
    for (; r + kValueRows <= rows_; r += kValueRows) of_rows.template operator()<kValueRows, 2>(r);
    for (; r + 4 <= rows_; r += 4) of_rows.template operator()<4, 2>(r);
    if (r + 2 <= rows_) of_rows.template operator()<2, 4>(r), r += 2;
    if (r < rows_) of_rows.template operator()<1, 8>(r);
  }

  // As multiply() with skip_zeros: a probability of 0 keeps what a mask excludes out.
  template <DType kSource>
  void add_step_skipping_zeros(int64_t head, int64_t begin, int64_t n, const char* const* rows) {
    for (int64_t r = 0; r < rows_; ++r) {
      const Real* probabilities = scores(head, r) + begin;
      for (int64_t k = 0; k < n; ++k) {
        const Real p = probabilities[k];
        if (p == Real(0)) continue;
        for (int64_t c = 0; c < t_.value_columns; c += S::kWidth) {
          Real* to = out(head, r) + c;
          S::store(to,
                   S::fma(S::set1(p), load_elements<S, kSource>(rows[k], c, p_.Kv), S::load(to)));
        }
      }
    }
  }

  // Rows that values are added to at once: as many as have their sums in registers.
  static constexpr int kValueRows = S::kWidth >= 16 ? 8 : 4;
  static constexpr int64_t kRowSlots = 8;  // to prefetch in, of the softmax of a row

  const ForwardProblem& p_;
  const Tiling& t_;
  DecodeScratch<Op>& s_;
  typename Op::Registers& registers_;
  const Sequence& sequence_;
  const int64_t rows_, first_head_, heads_, begin_, n_;
  RowPrefetcher prefetcher_;
};

}  // namespace
}  // namespace attn::cpu
