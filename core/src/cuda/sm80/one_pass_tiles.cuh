// The tiles of the backward in one pass: 64 queries by 128 keys, of which each of eight warps
// differentiates 32 by 32. P and dS then pass through shared memory to the products that sum them.
#pragma once

#include "cuda/device/key_tiles.cuh"
#include "cuda/device/products.cuh"
#include "cuda/sm80/backward_arguments.h"
#include "cuda/sm80/one_pass.h"

namespace attn::cuda {

// A tile of queries of one of the heads that share the block's keys.
struct OnePassStep {
  int g, query_tile;
};

// What all threads of a block read again and again, from shared memory: registers are short.
struct OnePassFacts {
  int key_tile, key_head, b;
  int query_tiles;       // of a head
  int begin, end;        // those that may see some of the keys
  OnePassStep steps[2];  // of either stage
  KeyBand band;          // of the first query
};
static_assert(sizeof(OnePassFacts) <= kOnePassFactsBytes);

// A block's shared memory: the stationary keys, stages of streamed queries, and what is made of
// both.
template <class Element_, int kWidth_>
struct OnePassMemory {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kQueries = kOnePassQueries, kKeys = kOnePassKeys;
  using Rows = RowTile<Element, kWidth>;
  // A row for each query. Of eight float32 ones the even keys come first, then the odd ones: as a
  // left operand's depth they meet keys that are read by depth.
  using Pairs = RowTile<Element, kKeys>;
  static constexpr int kStages = 2;
  static constexpr int kStatisticsBytes = 3 * kQueries * static_cast<int>(sizeof(float));
  static constexpr int kStageBytes = 2 * Rows::bytes(kQueries) + kStatisticsBytes;
  static constexpr int kPairsAt = 2 * Rows::bytes(kKeys) + kStages * kStageBytes;
  static constexpr int kFactsAt = kPairsAt + 2 * Pairs::bytes(kQueries);
  static constexpr int kBiasesAt = kFactsAt + kOnePassFactsBytes;
  static constexpr int kBytes = kBiasesAt;
  static constexpr int kBiasBytes = Pairs::bytes(kQueries);
  static_assert(kBytes == one_pass_shared_bytes(sizeof(Element), kWidth, false));
  static_assert(kBytes + kBiasBytes == one_pass_shared_bytes(sizeof(Element), kWidth, true));
  static_assert(Rows::bytes(kKeys) <= 2 * Pairs::bytes(kQueries));

  char* base;

  // The second stage of keys, where there is one, lies where P and dS do, that of values behind
  // all.
  ATTN_DEVICE Rows keys(int stage) const { return Rows(base + stage * kPairsAt); }
  ATTN_DEVICE Rows values(int stage) const {
    return Rows(base + (stage == 0 ? Rows::bytes(kKeys) : kBiasesAt + kBiasBytes));
  }
  ATTN_DEVICE Rows queries(int stage) const { return Rows(stage_at(stage)); }
  ATTN_DEVICE Rows grad_outs(int stage) const {
    return Rows(stage_at(stage) + Rows::bytes(kQueries));
  }
  // [3, kQueries]: maximum, rest and delta
  ATTN_DEVICE float* statistics(int stage) const {
    return reinterpret_cast<float*>(stage_at(stage) + 2 * Rows::bytes(kQueries));
  }
  ATTN_DEVICE Pairs probabilities() const { return Pairs(base + kPairsAt); }
  ATTN_DEVICE Pairs grad_scores() const { return Pairs(base + kPairsAt + Pairs::bytes(kQueries)); }
  ATTN_DEVICE Pairs biases() const { return Pairs(base + kBiasesAt); }
  ATTN_DEVICE OnePassFacts& facts() const {
    return *reinterpret_cast<OnePassFacts*>(base + kFactsAt);
  }

 private:
  ATTN_DEVICE char* stage_at(int stage) const {
    return base + 2 * Rows::bytes(kKeys) + stage * kStageBytes;
  }
};

// Which pairs of a head a tile holds.
struct OnePassPlace {
  int b, h, query, key;  // the first ones
};

// kStreamsKeys: keys and values come in stages as well.
template <class Element, int kWidth, bool kStreamsKeys = false>
class OnePassTiles {
 public:
  using Memory = OnePassMemory<Element, kWidth>;
  using Rows = typename Memory::Rows;
  using Pairs = typename Memory::Pairs;
  static constexpr int kQueries = Memory::kQueries, kKeys = Memory::kKeys;
  static constexpr int kThreads = kOnePassThreads;
  static constexpr int kRowTiles = 2, kWarpRows = 16 * kRowTiles, kWarpColumns = 32;
  using WarpSums = Sums<kWarpColumns>[kRowTiles];

  ATTN_DEVICE explicit OnePassTiles(const BackwardArguments& arguments)
      : a(arguments), p(arguments.problem), memory{shared_memory()} {}

  // The rows of keys and values that begin with `first`.
  ATTN_DEVICE void load_keys(int stage, int64_t b, int64_t key_head, int first) const {
    const int rows = static_cast<int>(p.Mkv) - first;
    copy<kKeys>(memory.keys(stage), p.key.row(b, first, key_head), p.key, rows, p.K);
    copy<kKeys>(memory.values(stage), p.value.row(b, first, key_head), p.value, rows, p.Kv);
  }

  // The rows of queries, dO and statistics that begin with `first`.
  ATTN_DEVICE void load_queries(int stage, int b, int h, int first) const {
    const int rows = static_cast<int>(p.Mq) - first;
    copy<kQueries>(memory.queries(stage), p.query.row(b, first, h), p.query, rows, p.K);
    copy<kQueries>(memory.grad_outs(stage), p.grad_out.row(b, first, h), p.grad_out, rows, p.Kv);
    float* const statistics = memory.statistics(stage);
    for (int at = thread_index(); at < 3 * kQueries; at += kThreads) {
      const int which = at / kQueries, r = at % kQueries;
      const RowScalars& from = which == 0 ? p.lse_maximum : which == 1 ? p.lse_rest : a.delta;
      const bool present = r < rows;
      copy_async<4>(statistics + at, present ? &from.at<float>(b, h, first + r) : nullptr, present);
    }
  }

  ATTN_DEVICE void load_biases(const OnePassPlace& place) const {
    const Scores& bias = p.bias;
    const int rows = static_cast<int>(p.Mq) - place.query;
    const int keys = static_cast<int>(p.Mkv) - place.key;
    const char* first = bias.row(place.b, place.h, place.query) + place.key * kElementBytes;
    copy_rows<kQueries, kThreads>(memory.biases(), thread_index(), first,
                                  bias.stride_m * kElementBytes, rows, keys < kKeys ? keys : kKeys);
  }

  // P of the warp's pairs.
  ATTN_DEVICE void find_probabilities(WarpSums& sums, int stage, const OnePassPlace& place) const {
    multiply(sums, memory.queries(stage), memory.keys(key_stage(stage)));
    const float scale = static_cast<float>(p.scale) * kLog2E;
    if (p.bias) {
      each_pair_of_biases(sums, [&](float& x, float bias) { x = fmaf(x, scale, kLog2E * bias); });
      each_row(sums, stage,
               [](float& x, const float(&row)[3]) { x = exp2_approximate(x - row[0] - row[1]); });
    } else {
      each_row(sums, stage, [&](float& x, const float(&row)[3]) {
        x = exp2_approximate(fmaf(x, scale, -row[0]) - row[1]);
      });
    }
    if (!is_whole(place)) exclude(sums, place);
  }

  // dS of the warp's pairs.
  ATTN_DEVICE void find_score_gradients(WarpSums& sums, const WarpSums& probabilities, int stage,
                                        const OnePassPlace& place) const {
    multiply(sums, memory.grad_outs(stage), memory.values(key_stage(stage)));
    const float* const deltas = memory.statistics(stage) + 2 * kQueries;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float delta = deltas[own_query(m, r)];
#pragma unroll
        for (int at = 0; at < kWarpColumns / 4; ++at) {
          const int n = at / 2, e = 2 * r + at % 2;
          float& x = sums[m].values[n][e];
          x = probabilities[m].values[n][e] * (x - delta);
        }
      }
    }
    if (!is_whole(place)) exclude(sums, place);  // 0 times what was NaN
  }

  // Puts the warp's pairs where every warp can read them.
  ATTN_DEVICE void share(const Pairs& pairs, const WarpSums& sums) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; ++n) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float* x = &sums[m].values[n][2 * r];
          if constexpr (sizeof(Element) == 2) {
            *reinterpret_cast<uint32_t*>(pairs.at(own_query(m, r), own_key(n))) =
                pack<Element>(x[0], x[1]);
          } else {
            Element* const even = pairs.at(own_query(m, r), own_key(n) - lane() % 4);
            even[0] = x[0];
            even[4] = x[1];
          }
        }
      }
    }
  }

  // Writes the dS that were shared to a tensor like the scores, in whole rows of chunks.
  ATTN_DEVICE void store_score_gradients(const Scores& to, const OnePassPlace& place) const {
    const Pairs from = memory.grad_scores();
    constexpr int kChunks = kKeys / Pairs::kChunkElements;
    for (int at = thread_index(); at < kQueries * kChunks; at += kThreads) {
      const int row = at / kChunks, column = at % kChunks * Pairs::kChunkElements;
      if (place.query + row >= p.Mq || place.key + column >= p.Mkv) continue;
      char* const first = to.row(place.b, place.h, place.query + row);
      *reinterpret_cast<Chunk*>(first + (place.key + column) * kElementBytes) =
          *reinterpret_cast<const Chunk*>(from.at(row, column));
    }
  }

  // By one thread: what band_of reads after a barrier.
  ATTN_DEVICE void note_band() const {
    memory.facts().band = KeyBand(p.band, p.sequence(0), 0);  // all sequences are alike
  }
  ATTN_DEVICE KeyBand band_of(int query) const { return memory.facts().band.from(query); }

  // The key of eight that column `column` of eight shared pairs is.
  ATTN_DEVICE static int key_of_column(int column) {
    return sizeof(Element) == 2 ? column : column % 4 * 2 + column / 4;
  }

  // The same rows without the first ones.
  ATTN_DEVICE static Rows from(Rows rows, int row) {
    rows.data = rows.at(row, 0);
    return rows;
  }

  const BackwardArguments& a;
  const BackwardProblem& p;
  const Memory memory;

 private:
  static constexpr int64_t kElementBytes = sizeof(Element);

  template <int kRows>
  ATTN_DEVICE static void copy(const Rows& tile, const char* first, const HeadRows& x, int rows,
                               int64_t width) {
    copy_rows<kRows, kThreads>(tile, thread_index(), first, x.stride_m * kElementBytes, rows,
                               static_cast<int>(width));
  }

  ATTN_DEVICE static int key_stage(int stage) { return kStreamsKeys ? stage : 0; }

  // The warp's rows of both sides.
  ATTN_DEVICE static void multiply(WarpSums& sums, const Rows& query_side, const Rows& key_side) {
    multiply_rows<kRowTiles, false, kWidth / kStepDepth>(sums, query_side, warp_query(),
                                                         from(key_side, warp_key()));
  }

  // Of the tile's queries and keys, where the warp's begin; and where those of a lane lie.
  ATTN_DEVICE static int warp_query() { return warp_index() / 4 * kWarpRows; }
  ATTN_DEVICE static int warp_key() { return warp_index() % 4 * kWarpColumns; }
  ATTN_DEVICE static int own_query(int m, int r) {
    return warp_query() + 16 * m + 8 * r + lane() / 4;
  }
  ATTN_DEVICE static int own_key(int n) { return warp_key() + 8 * n + lane() % 4 * 2; }

  template <class Map>
  ATTN_DEVICE void each_pair_of_biases(WarpSums& sums, Map&& map) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; ++n) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float pair[2];
          load_pair(pair, memory.biases().at(own_query(m, r), own_key(n)));
          map(sums[m].values[n][2 * r], pair[0]);
          map(sums[m].values[n][2 * r + 1], pair[1]);
        }
      }
    }
  }

  // Calls map(x, statistics of the row).
  template <class Map>
  ATTN_DEVICE void each_row(WarpSums& sums, int stage, Map&& map) const {
    const float* const statistics = memory.statistics(stage);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* own = statistics + own_query(m, r);
        const float row[3] = {own[0], own[kQueries], 0.0f};
#pragma unroll
        for (int at = 0; at < kWarpColumns / 4; ++at) {
          map(sums[m].values[at / 2][2 * r + at % 2], row);
        }
      }
    }
  }

  // Whether the band excludes no pair.
  ATTN_DEVICE bool is_whole(const OnePassPlace& place) const {
    return band_of(place.query).is_whole(kQueries, place.key, place.key + kKeys);
  }

  // Sets pairs that the band excludes to 0.
  ATTN_DEVICE void exclude(WarpSums& sums, const OnePassPlace& place) const {
    const KeyBand band = band_of(place.query);
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int begin = band.begin(own_query(m, r)) - place.key;
        const int end = band.end(own_query(m, r)) - place.key;
#pragma unroll
        for (int at = 0; at < kWarpColumns / 4; ++at) {
          const int n = at / 2, e = at % 2, key = own_key(n) + e;
          if (key < begin || key >= end) sums[m].values[n][2 * r + e] = 0.0f;
        }
      }
    }
  }
};

}  // namespace attn::cuda
