// The forward of exact attention: a block of threads attends one tile of queries, key tile by key
// tile. Keys and values have one buffer each: while one is multiplied the other is copied.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <type_traits>

#include "cuda/device/mask.cuh"
#include "cuda/device/query_tiles.cuh"
#include "cuda/limits.h"
#include "cuda/sm80/bias_tile.cuh"
#include "cuda/sm80/forward_launch.h"
#include "cuda/sm80/output_stage.cuh"
#include "cuda/sm80/position_scores.cuh"
#include "cuda/sm80/softmax.cuh"
#include "cuda/sm80/tiles.h"

namespace attn::cuda::sm80 {

// is_extended: every part of the mask, and rows at any alignment; otherwise a band, and either
// sequences or a tensor of biases in aligned rows. has_positions: those too, which take registers;
// such tiles hold rows of any dtype as float32.
template <class Element_, int kWidth_, bool is_extended, bool has_positions = false>
struct ForwardTiles {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;
  static constexpr bool kExtended = is_extended, kPositions = has_positions;
  static constexpr ForwardShape kShape = forward_shape(sizeof(Element), kWidth, kExtended);
  static constexpr int kThreads = kShape.warps * kWarpLanes;
  static constexpr int kRowTiles = kShape.row_tiles;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kShape.warps * kWarpRows;
  static constexpr int kKeys = kShape.keys;

  using Tile = RowTile<Element, kWidth>;
  using Biases = BiasTile<kRows, kKeys, kThreads>;
  using RawBiases = RowTile<Element, kKeys>;  // as they lie in memory
  using Output = OutputStage<kWidth>;

  static constexpr int kOperandBytes = Tile::bytes(kRows + 2 * kKeys);
  static constexpr int kBiasesAt = kOperandBytes + kForwardFactsBytes;
  static constexpr int kSharedBytes = kBiasesAt + (kExtended ? Biases::kBytes : 0);
  static constexpr int kRawBiasBytes = kExtended ? 0 : RawBiases::bytes(kRows);
  static_assert(!kPositions || std::is_same_v<Element, float>);
  static_assert(kExtended || kRawBiasBytes == forward_bias_bytes(sizeof(Element), kWidth));
  static_assert(kSharedBytes == forward_shared_bytes(sizeof(Element), kWidth, kExtended));
  static_assert(kSharedBytes <= kMostSharedBytes);
  static_assert(kShape.warps * Output::kBytes <= kOperandBytes);
};

// What all threads of a block read tile by tile, from shared memory: registers are short.
struct ForwardFacts {
  KeyBand band;
  int end;                    // of the keys that any query sees
  int rows;                   // of queries that there are
  const char* biases;         // of the first query
  const char *keys, *values;  // the sequence's first; with pages the pool's
};
static_assert(sizeof(ForwardFacts) <= kForwardFactsBytes);

template <class Tiles>
class ForwardBlock {
 public:
  ATTN_DEVICE explicit ForwardBlock(const ForwardArguments& arguments)
      : arguments_(arguments),
        p_(arguments.problem),
        thread_(opaque(thread_index())),
        at_(query_tile<Tiles::kRows>(p_, static_cast<uint32_t>(block_index().x))),
        queries_(shared_memory(), splits()),
        keys_(shared_memory() + Tile::bytes(Tiles::kRows), splits()),
        values_(shared_memory() + Tile::bytes(Tiles::kRows + kKeys), splits()),
        facts_(*reinterpret_cast<ForwardFacts*>(shared_memory() + Tiles::kOperandBytes)),
        biases_{reinterpret_cast<float*>(shared_memory() + Tiles::kBiasesAt)} {}

  // Returns how values are to be read next, if once more.
  ATTN_DEVICE RowsRead run(RowsRead read) {
    if (at_.rows == 0) return RowsRead::kNoMore;
    attend(read);
    if (read == RowsRead::kAsTheyAre && block_has_nan()) return RowsRead::kFiniteOnly;
    store(read);
    return read_after(read);
  }

 private:
  using Tile = typename Tiles::Tile;
  using RawBiases = typename Tiles::RawBiases;
  static constexpr int kRowTiles = Tiles::kRowTiles, kKeys = Tiles::kKeys;
  static constexpr bool kExtended = Tiles::kExtended;

  // As of a tile.
  ATTN_DEVICE bool splits() const {
    return !Tiles::kPositions || p_.query.dtype == DType::kFloat32;
  }

  ATTN_DEVICE void attend(RowsRead read) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      out_[m].clear();
      running_[m] = {};
    }
    const KeyBand band(p_.band, at_.sequence, at_.first);
    const KeySpan span = key_span<kKeys>(band, at_.rows);
    if (thread_ == 0) {
      facts_ = {.band = band,
                .end = span.end,
                .rows = at_.rows,
                .biases = p_.bias.row(at_.sequence.b, at_.h, at_.sequence.q_begin + at_.first),
                .keys = first_row(p_.key),
                .values = first_row(p_.value)};
    }
    synchronise_block();
    load_queries();
    int key = next_tile(span.begin, span.end);
    if (key < span.end) load_keys(key);
    commit_copies();
#pragma unroll 1
    while (key < facts_.end) {
      const int next = next_tile(key + kKeys, facts_.end);
      attend_keys(key, next, read);
      key = next;
    }
    wait_for_copies<0>();
    synchronise_block();
  }

  // The first tile at or after the one that begins with `key` that any query sees.
  ATTN_DEVICE int next_tile(int key, int end) const {
    if (!kExtended || !p_.blocks || key >= end) return key;
    const int first = BlockTiles(p_.blocks, at_.h, at_.first, at_.rows).first_key(key, end);
    return first < end ? first / kKeys * kKeys : end;
  }

  // The tile that begins with `key`, whose keys are under way; `next` is the one that follows, if
  // there is one.
  ATTN_DEVICE void attend_keys(int key, int next, RowsRead read) {
    wait_for_copies<0>();
    synchronise_block();
    load_values(key);
    if (!kExtended && p_.bias) load_biases(key);
    commit_copies();
    const bool has_biases = kExtended && fill_biases(key);
    Sums<kKeys> scores[kRowTiles];
    multiply_rows<kRowTiles, false, Tile::kWidth / kStepDepth>(scores, queries_, warp_row(0),
                                                               keys_);
    wait_for_copies<0>();
    synchronise_block();
    if (next < facts_.end) load_keys(next);
    commit_copies();
    const bool is_whole = facts_.band.is_whole(Tiles::kRows, key, key + kKeys);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      if constexpr (kExtended) {
        apply_scale(scores[m], arguments_.scale, arguments_.softcap);
        if (has_biases) biases_.add_to(scores[m], warp_row(m));
      } else if (p_.bias) {
        add_biases(scores[m], m, read);
      }
      if (!is_whole) apply_band(scores[m], facts_.band, row(m), key + first_column());
      soften(m, scores[m]);
      if constexpr (kExtended) drop(scores[m], m, key);
    }
    if (read != RowsRead::kAsTheyAre) rewrite_values(read);
    add_weighted_rows<kRowTiles>(out_, scores, values_, kExtended && arguments_.keeps_rests);
  }

  ATTN_DEVICE void drop(Sums<kKeys>& probabilities, int m, int key) const {
    if (!p_.dropout.enabled) return;
    apply_dropout(probabilities, p_.dropout, at_.sequence.b, at_.h,
                  at_.sequence.q_begin + at_.first + row(m), key + first_column());
  }

  // Returns whether there are any.
  ATTN_DEVICE bool fill_biases(int key) const {
    bool excludes_blocks = false;
    if (p_.blocks) {
      const BlockTiles blocks(p_.blocks, at_.h, at_.first, at_.rows);
      excludes_blocks = !blocks.sees_all(key, key + kKeys < facts_.end ? key + kKeys : facts_.end);
    }
    if (!p_.bias && !p_.slopes && !p_.table && !excludes_blocks && !Tiles::kPositions) return false;
    biases_.fill(p_, at_.sequence, at_.h, at_.first, key, excludes_blocks);
    if constexpr (Tiles::kPositions) add_positions(key);
    return true;
  }

  // A tile of biases beside the values: it lands with them, and is read before the next ones.
  ATTN_DEVICE void load_biases(int key) const {
    const int keys = facts_.band.keys - key;
    copy_rows<Tiles::kRows, Tiles::kThreads>(
        raw_biases(), thread_, facts_.biases + key * kElementBytes,
        p_.bias.stride_m * kElementBytes, facts_.rows, keys < kKeys ? keys : kKeys);
  }

  // Scales the scores and adds their biases. Only NaN in excluded keys needs more: where there may
  // be some, what a bias excludes is selected.
  ATTN_DEVICE void add_biases(Sums<kKeys>& scores, int m, RowsRead read) const {
    const RawBiases biases = raw_biases();
    const auto* mine = biases.at(row(m), first_column());
    const auto each_pair = [&](auto&& map) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          float pair[2];
          load_pair(pair, mine + 8 * (r * RawBiases::kStride + n));
#pragma unroll
          for (int e = 0; e < 2; ++e) map(scores.values[n][2 * r + e], pair[e]);
        }
      }
    };
    each_pair([&](float& x, float bias) { x = fmaf(x, arguments_.natural_scale, bias); });
    if (read == RowsRead::kAsTheyAre) return;
    each_pair([&](float& x, float bias) {
      if (kLog2E * bias == -infinity()) x = -infinity();
    });
  }

  ATTN_DEVICE void add_positions(int key) const {
    synchronise_block();
    const int row = warp_row(0);
#pragma unroll 1
    for (int column = 0; column < kKeys; column += kSquare) {
      SquareScores scores;
      load_position_scores<Side::kQueries>(scores, p_, at_.sequence, at_.h, at_.first + row,
                                           key + column);
      biases_.add(scores, row, column);
    }
  }

  ATTN_DEVICE void soften(int m, Sums<kKeys>& scores) {
    const float factor = kExtended ? 1.0f : arguments_.score_factor;
    float rescale[2];
    if (!any(update_softmax(scores, factor, running_[m], rescale))) return;
#pragma unroll
    for (int n = 0; n < Tiles::kWidth / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out_[m].values[n][e] *= rescale[e / 2];
    }
  }

  ATTN_DEVICE void rewrite_values(RowsRead read) const {
    rewrite_rows<kKeys, Tiles::kThreads>(values_, read);
    synchronise_block();
  }

  // Row tile m of this warp, within the block's tile.
  ATTN_DEVICE int warp_row(int m) const { return warp_index() * Tiles::kWarpRows + 16 * m; }

  // Where this lane's scores of row tile m begin, within the tile; no register is kept for that.
  ATTN_DEVICE int row(int m) const {
    const int thread = opaque(thread_);
    return thread / kWarpLanes * Tiles::kWarpRows + 16 * m + thread % kWarpLanes / 4;
  }
  ATTN_DEVICE int first_column() const { return opaque(thread_) % 4 * 2; }

  static constexpr int64_t kElementBytes = sizeof(typename Tiles::Element);

  ATTN_DEVICE static int64_t bytes_of(const HeadRows& x, int64_t elements) {
    return elements * (Tiles::kPositions ? element_bytes(x.dtype) : kElementBytes);
  }

  ATTN_DEVICE RawBiases raw_biases() const { return RawBiases(shared_memory() + Tiles::kBiasesAt); }

  ATTN_DEVICE bool has_pages() const { return kExtended && at_.sequence.pages; }

  ATTN_DEVICE static const char* row_of(const HeadRows& x, int64_t b, int64_t row, int64_t h) {
    return x.data + bytes_of(x, b * x.stride_b + row * x.stride_m + h * x.stride_h);
  }
  // Of keys or values.
  ATTN_DEVICE const char* first_row(const HeadRows& x) const {
    return row_of(x, at_.sequence.b, has_pages() ? 0 : at_.sequence.k_begin,
                  at_.h / static_cast<int>(p_.G));
  }

  ATTN_DEVICE void load_queries() const {
    const char* first = row_of(p_.query, at_.sequence.b, at_.sequence.q_begin + at_.first, at_.h);
    const int64_t stride = bytes_of(p_.query, p_.query.stride_m);
    if (!kExtended || arguments_.query_is_aligned) {
      return copy_rows<Tiles::kRows, Tiles::kThreads>(queries_, thread_, first, stride, at_.rows,
                                                      static_cast<int>(p_.K));
    }
    load_rows<Tiles::kThreads>(queries_, Tiles::kRows, {{p_.query, p_.K}, false},
                               [&](int r) { return r < at_.rows ? first + r * stride : nullptr; });
  }

  ATTN_DEVICE void load_keys(int key) const {
    load_key_rows(keys_, facts_.keys, p_.key, p_.K, arguments_.key_is_aligned, key);
  }

  ATTN_DEVICE void load_values(int key) const {
    load_key_rows(values_, facts_.values, p_.value, p_.Kv, arguments_.value_is_aligned, key);
  }

  ATTN_DEVICE void load_key_rows(const Tile& tile, const char* first, const HeadRows& x,
                                 int64_t width, bool is_aligned, int key) const {
    const int64_t stride = bytes_of(x, x.stride_m);
    if (!kExtended || (is_aligned && !has_pages())) {
      return copy_rows<kKeys, Tiles::kThreads>(tile, thread_, first + key * stride, stride,
                                               facts_.band.keys - key, static_cast<int>(width));
    }
    load_rows<Tiles::kThreads>(tile, kKeys, {{x, width}, is_aligned}, [&](int r) -> const char* {
      if (key + r >= facts_.band.keys) return nullptr;
      return first + (has_pages() ? key_row_of(p_, at_.sequence, key + r) : key + r) * stride;
    });
  }

  // Whether any of the block's results is NaN.
  ATTN_DEVICE bool block_has_nan() const {
    bool has_nan = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) has_nan |= out_[m].has_nan();
    has_nan = any(has_nan);
    bool* found = reinterpret_cast<bool*>(shared_memory());  // of each warp
    const int thread = opaque(thread_);
    if (thread % kWarpLanes == 0) found[thread / kWarpLanes] = has_nan;
    synchronise_block();
    for (int warp = 0; warp < Tiles::kShape.warps; ++warp) has_nan |= found[warp];
    synchronise_block();
    return has_nan;
  }

  ATTN_DEVICE void store(RowsRead read) const {
    // Found anew: the loops have no registers left to keep it in.
    const QueryTile at =
        query_tile<Tiles::kRows>(opaque<Problem>(p_), static_cast<uint32_t>(block_index().x));
    const bool has_sink = p_.sink && !at.is_outside;
    const float sink =
        has_sink ? kLog2E * read_number(p_.sink.at(at.h), p_.sink.dtype) : -infinity();
    const bool counts = read == RowsRead::kWhetherNonfinite;
    const int thread = opaque(thread_), warp = thread / kWarpLanes, mine = thread % kWarpLanes;
    const int row = mine / 4;
    const typename Tiles::Output stage{
        reinterpret_cast<float*>(shared_memory() + warp * Tiles::Output::kBytes)};
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      const int begin = warp * Tiles::kWarpRows + 16 * m;
      const int rows = at.rows - begin < 16 ? at.rows - begin : 16;
      const int64_t b = at.sequence.b, first = at.sequence.q_begin + at.first + begin;
      float factors[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const FinishedRow finished = finish_softmax(running_[m], r, sink);
        factors[r] = counts ? 1.0f : finished.factor * kept_scale();
        if (p_.lse && mine % 4 == 0 && row + 8 * r < rows) {
          p_.lse.at<float>(b, at.h, first + row + 8 * r) = finished.lse;
        }
      }
      stage.store(out_[m], factors, rows, static_cast<int>(p_.Kv), p_.out.dtype, read, mine,
                  [&](int r) { return p_.out.row(b, first + r, at.h); });
    }
  }

  // What the probabilities that dropout kept are yet to be multiplied with.
  ATTN_DEVICE float kept_scale() const {
    return kExtended && p_.dropout.enabled ? static_cast<float>(p_.dropout.keep_scale) : 1.0f;
  }

  const ForwardArguments& arguments_;
  const ForwardProblem& p_;
  const int thread_;
  const QueryTile at_;
  const Tile queries_, keys_, values_;
  ForwardFacts& facts_;
  const typename Tiles::Biases biases_;
  Sums<Tiles::kWidth> out_[kRowTiles];
  RunningSoftmax running_[kRowTiles];
};

template <class Tiles>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(Tiles::kThreads, Tiles::kShape.blocks)
    forward_kernel(ATTN_ARGUMENTS const ForwardArguments arguments) {
  if constexpr (kIsServed<typename Tiles::Element>) {
    read_rows<true>(RowsRead::kAsTheyAre,
                    [&](RowsRead read) { return ForwardBlock<Tiles>(arguments).run(read); });
  }
}

}  // namespace attn::cuda::sm80
