// Attention of few queries over many keys: a block of threads takes a split of fixed length of one
// sequence's keys, for all query rows that share a key head.
//
// The rows, at most 16, are one fragment's. Each warp reads keys of its own, so that no barrier
// interrupts the reading, and the warps' results are joined at the end.
// Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
#pragma once

#include "cuda/device/mask.cuh"
#include "cuda/device/nonfinite_rows.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/device/sequences.cuh"

namespace attn::cuda::decode {

constexpr int kRows = 16;        // query rows of a key head: query r % Mq of head r / Mq
constexpr int kSplitKeys = 512;  // never another number: results must not depend on a batch
constexpr int kTileKeys = 16;    // of a warp at once

template <class Element, int kWidth>
struct DecodeShape {
  static constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(Element));
  static constexpr int kWarps = kRowBytes <= 256 ? 4 : 2;
  static constexpr int kStages = kRowBytes <= 128 ? 3 : kRowBytes <= 512 ? 2 : 1;
  static constexpr int kThreads = kWarps * kWarpLanes;
  // As many as shared memory of 227 KiB holds, for which registers are to suffice.
  static constexpr int kResidentBlocks = kRowBytes <= 128 ? 4 : kRowBytes <= 256 ? 3 : 1;
};

struct DecodeArguments {
  ForwardProblem problem;
  int64_t splits;  // of the longest sequence
  bool query_is_aligned, key_is_aligned, value_is_aligned;
  // With more than one split, in the workspace: [splits, B, Mq, Hq, Kv] float32, not yet divided by
  // their sums, and [2, splits, B, Hq, Mq] of maxima to base 2 and sums.
  HeadRows partial_out;
  RowScalars maxima, totals;
  int64_t out_step, row_step;  // bytes from split to split
};

// A row's softmax so far, to base 2.
struct RowSoftmax {
  float maximum = -infinity(), total = 0.0f;

  ATTN_DEVICE static float finite(float maximum) { return maximum == -infinity() ? 0.0f : maximum; }
  // What brings sums of the old maximum to the new one.
  ATTN_DEVICE float raise(float most) {
    const float rescale = exp2_approximate(maximum - finite(most));
    maximum = most;
    total *= rescale;
    return rescale;
  }
};

template <class Element, int kWidth>
class DecodeSplit {
 public:
  using Shape = DecodeShape<Element, kWidth>;
  using Tile = RowTile<Element, kWidth>;
  static constexpr int kPairBytes = 2 * Tile::bytes(kTileKeys);
  static constexpr int kTilesBytes = Shape::kWarps * Shape::kStages * kPairBytes;
  // At the end each warp's sums, and its rows' softmax, take the place of keys.
  // Rows of sums begin in different banks.
  static constexpr int kJoinStride = kWidth + 8;
  static constexpr int kJoinBytes =
      Shape::kWarps * kRows * (kJoinStride + 2) * static_cast<int>(sizeof(float));
  static constexpr int kBytes =
      Tile::bytes(kRows) + (kTilesBytes > kJoinBytes ? kTilesBytes : kJoinBytes);

  ATTN_DEVICE explicit DecodeSplit(const DecodeArguments& arguments)
      : a_(arguments),
        p_(arguments.problem),
        split_(block_index().x % arguments.splits),
        key_head_(block_index().x / arguments.splits % arguments.problem.Hkv),
        s_(sequence_at(arguments.problem,
                       block_index().x / arguments.splits / arguments.problem.Hkv)) {
    // A sequence with more queries than it said has those beyond not attended.
    if (s_.Mq * p_.G > kRows) s_.Mq = kRows / p_.G;
    rows_ = static_cast<int>(s_.Mq * p_.G);
    factor_ = static_cast<float>(p_.scale) * kLog2E;
    softcap_ = static_cast<float>(p_.softcap) * kLog2E;
    has_terms_ = p_.bias || p_.slopes || p_.table || p_.blocks;
    lies_in_a_row_ = !s_.pages || (s_.page_size % kTileKeys == 0 && s_.k_begin % kTileKeys == 0);
    for (int r = 0; r < 2; ++r) {
      const int row = lane() / 4 + 8 * r;
      // Rows that are not there see everything, so that they exclude nothing.
      seen_[r] = row < rows_ ? s_.keys_of(query_of(row)) : KeyRange{0, kMostRows};
    }
  }

  // Returns how values are to be read next, if once more.
  ATTN_DEVICE RowsRead run(RowsRead read) {
    clear_outside_sequences();
    if (rows_ == 0) return RowsRead::kNoMore;
    load_rows<Shape::kThreads>(
        queries(), kRows, {{p_.query, p_.K}, a_.query_is_aligned}, [&](int r) -> const char* {
          return r < rows_ ? p_.query.row(s_.b, s_.q_begin + query_of(r), head_of(r)) : nullptr;
        });
    commit_copies();
    wait_for_copies<0>();
    synchronise_block();
    sums_.clear();
    attend_keys(read);
    const bool has_nan = read == RowsRead::kAsTheyAre &&
                         any_of_block(sums_.has_nan(), reinterpret_cast<int*>(after_queries()));
    if (has_nan) return RowsRead::kFiniteOnly;
    join_warps();
    store(read);
    return read_after(read);
  }

 private:
  ATTN_DEVICE int query_of(int row) const { return row % static_cast<int>(s_.Mq); }
  ATTN_DEVICE int head_of(int row) const {
    return static_cast<int>(key_head_ * p_.G) + row / static_cast<int>(s_.Mq);
  }

  ATTN_DEVICE Tile queries() const { return Tile(shared_memory()); }
  ATTN_DEVICE char* after_queries() const { return shared_memory() + Tile::bytes(kRows); }
  ATTN_DEVICE char* stage_memory(int stage) const {
    return after_queries() + (warp_index() * Shape::kStages + stage) * kPairBytes;
  }
  ATTN_DEVICE Tile keys(int stage) const { return Tile(stage_memory(stage)); }
  ATTN_DEVICE Tile values(int stage) const {
    return Tile(stage_memory(stage) + Tile::bytes(kTileKeys));
  }

  // The warp's tiles of the split, from first to last in turn with the other warps'.
  ATTN_DEVICE void attend_keys(RowsRead read) {
    const int64_t split_begin = split_ * kSplitKeys;
    const KeyRange all{s_.keys_of(0).begin, s_.keys_of(s_.Mq - 1).end};
    const int64_t from = all.begin > split_begin ? all.begin / kTileKeys * kTileKeys : split_begin;
    const int64_t end = clamp(all.end, 0, split_begin + kSplitKeys);
    const int tiles = from < end ? static_cast<int>((end - from + kTileKeys - 1) / kTileKeys) : 0;
    const auto begin_of = [&](int tile) { return static_cast<int>(from) + tile * kTileKeys; };
    int ahead = warp_index();
    for (int stage = 0; stage < Shape::kStages; ++stage, ahead += Shape::kWarps) {
      if (ahead < tiles) load_keys(begin_of(ahead), stage);
      commit_copies();
    }
    int stage = 0;
#pragma unroll 1
    for (int tile = warp_index(); tile < tiles; tile += Shape::kWarps, ahead += Shape::kWarps) {
      wait_for_copies<Shape::kStages - 1>();
      synchronise_warp();
      attend_tile(begin_of(tile), stage, read);
      synchronise_warp();
      if (ahead < tiles) load_keys(begin_of(ahead), stage);
      commit_copies();
      stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
    }
    wait_for_copies<0>();
  }

  ATTN_DEVICE void load_keys(int begin, int stage) const {
    load_tile(keys(stage), p_.key, p_.K, a_.key_is_aligned, begin);
    load_tile(values(stage), p_.value, p_.Kv, a_.value_is_aligned, begin);
  }

  ATTN_DEVICE void load_tile(const Tile& tile, const HeadRows& x, int64_t width, bool is_aligned,
                             int begin) const {
    const auto row_of = [&](int64_t j) { return x.row(s_.b, key_row_of(p_, s_, j), key_head_); };
    if (is_aligned && lies_in_a_row_) {
      return copy_rows<kTileKeys, kWarpLanes>(
          tile, lane(), row_of(begin), x.stride_m * static_cast<int64_t>(sizeof(Element)),
          static_cast<int>(s_.Mkv) - begin, static_cast<int>(width));
    }
    load_rows<kWarpLanes>(
        tile, kTileKeys, {{x, width}, is_aligned},
        [&](int r) -> const char* { return begin + r < s_.Mkv ? row_of(begin + r) : nullptr; },
        lane());
  }

  ATTN_DEVICE void attend_tile(int begin, int stage, RowsRead read) {
    Sums<kTileKeys> scores;
    multiply_rows(&scores, queries(), 0, keys(stage));
    mask_scores(scores, begin);
    float sums[2] = {0.0f, 0.0f}, most[2] = {softmax_[0].maximum, softmax_[1].maximum};
    each_score(scores, [&](float& x, int r, int) { most[r] = fmaxf(most[r], x); });
    for (int r = 0; r < 2; ++r) {
      most[r] = quad_maximum(most[r]);
      const float rescale = softmax_[r].raise(most[r]);
      if (!any(rescale != 1.0f)) continue;  // most tiles hold no new maximum
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        sums_.values[n][2 * r] *= rescale;
        sums_.values[n][2 * r + 1] *= rescale;
      }
    }
    each_score(scores, [&](float& x, int r, int) {
      x = exp2_approximate(x - RowSoftmax::finite(most[r]));
      sums[r] += x;
    });
    for (int r = 0; r < 2; ++r) softmax_[r].total += sums[r];
    if (p_.dropout.enabled) drop(scores, begin);
    if (read != RowsRead::kAsTheyAre) {
      rewrite_rows<kTileKeys, kWarpLanes>(values(stage), read, lane());
      synchronise_warp();
    }
    add_weighted_rows(&sums_, &scores, values(stage));
  }

  // Brings them to base 2.
  ATTN_DEVICE void mask_scores(Sums<kTileKeys>& scores, int begin) const {
    bool excludes = has_terms_;
    for (const KeyRange& seen : seen_) {
      excludes |= seen.begin > begin || seen.end < begin + kTileKeys;
    }
    each_score(scores, [&](float& x, int, int) { x *= factor_; });
    if (softcap_ > 0.0f) {  // divided here: a factor more would not fit registers
      each_score(scores, [&](float& x, int, int) { x = softcap_ * tanh_accurate(x / softcap_); });
    }
    if (!any(excludes)) return;
    float terms[kTileKeys / 2];  // what is added to each; -infinity excludes one
    load_terms(terms, begin);
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float term = terms[4 * n + e];
        float& x = scores.values[n][e];
        x = term == -infinity() ? term : x + term;  // an excluded score may be NaN
      }
    }
  }

  template <int kTerms>
  ATTN_DEVICE void load_terms(float (&terms)[kTerms], int begin) const {
#pragma unroll 1
    for (int at = 0; at < kTerms; ++at) {
      const int r = at % 4 / 2, j = begin + at / 4 * 8 + lane() % 4 * 2 + at % 2;
      const int row = lane() / 4 + 8 * r;
      // Not seen_[r]: an index that is not known to the compiler puts all members into memory.
      const KeyRange seen = r == 0 ? seen_[0] : seen_[1];
      terms[at] = row < rows_ ? -infinity() : 0.0f;
      if (row >= rows_ || j < seen.begin || j >= seen.end) continue;
      const int i = query_of(row), h = head_of(row);
      if (p_.blocks && !sees_block(p_.blocks, h, i, j)) continue;
      terms[at] = has_terms_ ? ScoreTerms{p_, s_, h}.bias(i, j, key_row_of(p_, s_, j)) : 0.0f;
    }
  }

  ATTN_DEVICE void drop(Sums<kTileKeys>& probabilities, int begin) const {
    const int key = begin + lane() % 4 * 2;
    const uint32_t kept = kept_of_query_rows<kTileKeys / 8>([&](int r, int column) {
      const int row = lane() / 4 + 8 * r;
      return kept_keys(p_.dropout, s_.b, head_of(row), s_.q_begin + query_of(row),
                       (key + column) / kDrawsPerCounter);
    });
    const float keep_scale = static_cast<float>(p_.dropout.keep_scale);
#pragma unroll
    for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = probabilities.values[n][e];
        x = (kept >> (4 * n + e) & 1) != 0 ? x * keep_scale : 0.0f;
      }
    }
  }

  ATTN_DEVICE float* joined_sums(int warp) const {
    return reinterpret_cast<float*>(after_queries()) + warp * kRows * kJoinStride;
  }
  ATTN_DEVICE float* joined_softmax(int warp) const {  // [kRows, 2]
    return reinterpret_cast<float*>(after_queries()) + Shape::kWarps * kRows * kJoinStride +
           warp * kRows * 2;
  }

  // Leaves every warp's sums in shared memory.
  ATTN_DEVICE void join_warps() {
    synchronise_block();  // nobody reads keys any more
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = lane() / 4 + 8 * r;
      float* const to = joined_sums(warp_index()) + row * kJoinStride + lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kWidth / 8; ++n) {
        to[8 * n] = sums_.values[n][2 * r];
        to[8 * n + 1] = sums_.values[n][2 * r + 1];
      }
      const float total = quad_sum(softmax_[r].total);
      if (lane() % 4 != 0) continue;
      joined_softmax(warp_index())[2 * row] = softmax_[r].maximum;
      joined_softmax(warp_index())[2 * row + 1] = total;
    }
    synchronise_block();
  }

  // A warp for each row in turn: its sums over all warps.
  ATTN_DEVICE void store(RowsRead read) const {
#pragma unroll 1
    for (int row = warp_index(); row < rows_; row += Shape::kWarps) {
      const int h = head_of(row);
      const int64_t m = s_.q_begin + query_of(row);
      RowSoftmax joined;
      float weights[Shape::kWarps];
      const float sink =
          p_.sink && split_ == 0 ? kLog2E * read_number(p_.sink.at(h), p_.sink.dtype) : -infinity();
      joined.maximum = sink;
      for (int w = 0; w < Shape::kWarps; ++w) {
        joined.maximum = fmaxf(joined.maximum, joined_softmax(w)[2 * row]);
      }
      const float reference = RowSoftmax::finite(joined.maximum);
      joined.total = exp2_approximate(sink - reference);
      for (int w = 0; w < Shape::kWarps; ++w) {
        weights[w] = exp2_approximate(joined_softmax(w)[2 * row] - reference);
        joined.total = fmaf(weights[w], joined_softmax(w)[2 * row + 1], joined.total);
      }
      store_row(h, m, joined, read, [&](int column) {
        float sum = 0.0f;
        for (int w = 0; w < Shape::kWarps; ++w) {
          if (weights[w] != 0.0f)
            sum = fmaf(weights[w], joined_sums(w)[row * kJoinStride + column], sum);
        }
        return sum;
      });
    }
  }

  // Of this split, or of all if it is the only one.
  template <class SumOf>
  ATTN_DEVICE void store_row(int64_t h, int64_t m, const RowSoftmax& row, RowsRead read,
                             SumOf&& sum_of) const {
    const bool is_only = a_.splits == 1;
    HeadRows out = is_only ? p_.out : a_.partial_out;
    if (!is_only) out.data += split_ * a_.out_step;
    const float factor = is_only ? 1.0f / row.total : 1.0f;
    char* const to = out.row(s_.b, m, h);
    for (int column = lane(); column < p_.Kv; column += kWarpLanes) {
      float sum = row.total == 0.0f ? 0.0f : sum_of(column) * factor;
      if (read == RowsRead::kWhetherNonfinite) {
        if (sum == 0.0f) continue;
        sum = __builtin_nanf("");
      }
      write_number(to + column * element_bytes(out.dtype), out.dtype, sum);
    }
    if (lane() != 0) return;
    if (!is_only) {
      const auto split_of = [&](RowScalars x) {
        x.data += split_ * a_.row_step;
        return x;
      };
      split_of(a_.maxima).template at<float>(s_.b, h, m) = row.maximum;
      split_of(a_.totals).template at<float>(s_.b, h, m) = row.total;
    } else if (p_.lse) {
      p_.lse.template at<float>(s_.b, h, m) =
          row.total == 0.0f ? -infinity() : row.maximum / kLog2E + logf(row.total);
    }
  }

  // Queries that no sequence owns come before the first or after the last, and see nothing.
  ATTN_DEVICE void clear_outside_sequences() const {
    if (!p_.sequences) return;
    const auto clear = [&](int64_t begin, int64_t end) {
      const int64_t rows = (end - begin) * p_.G;
      for (int64_t at = warp_index(); at < rows; at += Shape::kWarps) {
        store_row(key_head_ * p_.G + at % p_.G, begin + at / p_.G, {}, RowsRead::kAsTheyAre,
                  [](int) { return 0.0f; });
      }
    };
    if (s_.index == 0) clear(0, s_.q_begin);
    if (s_.index == p_.sequences.count - 1) clear(s_.q_begin + s_.Mq, p_.Mq);
  }

  const DecodeArguments& a_;
  const ForwardProblem& p_;
  const int64_t split_, key_head_;
  Sequence s_;
  int rows_;
  float factor_, softcap_;  // to base 2
  bool has_terms_;
  bool lies_in_a_row_;  // each tile of keys, in memory
  KeyRange seen_[2];    // by the thread's two rows
  RowSoftmax softmax_[2];
  Sums<kWidth> sums_;
};

template <class Element, int kWidth>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS((DecodeShape<Element, kWidth>::kThreads),
                                    (DecodeShape<Element, kWidth>::kResidentBlocks))
    decode_kernel(ATTN_ARGUMENTS const DecodeArguments arguments) {
  if constexpr (kIsServed<Element>) {
    read_rows<true>(RowsRead::kAsTheyAre, [&](RowsRead read) {
      return DecodeSplit<Element, kWidth>(arguments).run(read);
    });
  }
}

}  // namespace attn::cuda::decode
