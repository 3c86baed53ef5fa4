// How the work of decoding is cut, and the memory of a task.
#pragma once

#include <cstdint>

#include "cpu/kernels/masked_keys-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scratch-inl.h"

namespace attn::cpu {
namespace {

// From this many rows per key head tile registers are faster than vectors.
constexpr int64_t kLeastTileRows = 5;

template <class Op>
constexpr bool decodes_by_tiles(int64_t rows) {
  return HasTiles<Op> && rows >= kLeastTileRows;
}

template <class Op>
struct DecodeTiling {
  using Real = typename Op::S::Real;
  static constexpr int64_t kSplitKeys = 1024;
  // A CPU with tile registers gained nothing from more.
  static constexpr int64_t kTileKeys = HasTiles<Op> ? 64 : 128;
  static constexpr int64_t kLeastStepKeys = larger(8, Op::S::kWidth);
  // Of keys whose runs are read together.
  static constexpr int64_t kStepBytes = HasTiles<Op> ? 16384 : 32768;
  static constexpr int64_t kTileStepBytes = 65536;    // the same, by tile registers
  static constexpr int64_t kRunBytes = 8192;          // of neighbouring heads' rows, read in one go
  static constexpr int64_t kShortRunBytes = 2048;     // at most: read key by key, and prefetched
  static constexpr int64_t kCachedBytes = 16 << 20;   // of keys and values that caches may hold
  static constexpr int64_t kPartialBytes = 16 << 20;  // of partial results, at least one sequence's

  int64_t rows;           // of one key head, at most: G * Mq
  int64_t key_units;      // units of a packed query or key
  int64_t query_units;    // units of a key head's packed queries
  int64_t value_columns;  // Kv in whole vectors
  int64_t splits;         // of the longest sequence
  int64_t heads;          // key heads per task
  int64_t groups;         // of heads, per sequence
  int64_t run_bytes;      // of a key's rows for the heads of a task
  int64_t step_keys;      // whole vectors
  int64_t wave;           // sequences whose partial results are kept at a time
  int64_t tasks;          // per wave: a split of a group each

  // Whether the keys of at most kScoreRows rows are prefetched; those of more always are.
  bool prefetches_few_rows;

  explicit DecodeTiling(const Problem& p)
      : rows(smaller(p.G * p.most_queries, kDecodeRows)),
        key_units(round_up(units_of<Op>(p.K), Op::S::kWidth)),
        query_units(key_units * (decodes_by_tiles<Op>(rows) ? Op::S::kWidth : rows)),
        value_columns(round_up(p.Kv, Op::S::kWidth)),
        splits(splits_of(p.most_keys)),
        heads(smaller(larger(kRunBytes / (p.K * element_bytes(p.key.dtype)), 1), p.Hkv)),
        groups((p.Hkv + heads - 1) / heads),
        run_bytes(heads * p.K * element_bytes(p.key.dtype)),
        step_keys(step_keys_of(run_bytes, decodes_by_tiles<Op>(rows))) {
    const int64_t partial_bytes =
        p.Hkv * splits * rows * (value_columns + 2) * static_cast<int64_t>(sizeof(Real));
    wave = splits > 1 ? kPartialBytes / larger(partial_bytes, 1) : p.num_sequences;
    wave = larger(smaller(wave, p.num_sequences), 1);
    tasks = wave * groups * splits;
    prefetches_few_rows = run_bytes <= kShortRunBytes || outruns_hardware(p);
  }

  // Hardware prefetches long runs well enough for few rows of float32. Pairs of bfloat16 are taken
  // in faster.
  static bool outruns_hardware(const Problem& p) {
    const int64_t bytes = p.B * p.Mkv * p.Hkv * (p.K + p.Kv) * element_bytes(p.key.dtype);
    return Op::kDepth == 2 && !HasTiles<Op> && bytes > kCachedBytes;
  }

  static int64_t step_keys_of(int64_t run_bytes, bool by_tiles) {
    const int64_t least = by_tiles ? kTileKeys / 2 : kLeastStepKeys;
    const int64_t keys = (by_tiles ? kTileStepBytes : kStepBytes) / run_bytes / least * least;
    return smaller(larger(keys, least), kTileKeys);
  }
  static int64_t splits_of(int64_t keys) { return larger((keys + kSplitKeys - 1) / kSplitKeys, 1); }
};

// What a split found for one query row.
template <class Op>
struct DecodeState {
  using Real = typename Op::S::Real;
  RunningSoftmax<Real>* running;  // [count]
  Real* out;                      // [count, value_columns]

  DecodeState(Scratch& scratch, const DecodeTiling<Op>& t, int64_t count)
      : running(scratch.take<RunningSoftmax<Real>>(count)),
        out(scratch.take<Real>(count * t.value_columns)) {}
};

template <class Op>
struct DecodeScratch {
  using Real = typename Op::S::Real;
  using Unit = typename Op::Unit;
  Unit* queries;          // [heads, query_units]
  DecodeState<Op> state;  // [heads, rows]
  Real* scores;           // [heads, rows, kTileKeys]
  Unit* converted;        // [step_keys, key_units or value_columns]
  TileMask* masks;        // [heads]: of the tile, for the rows of each
  RowWeights<typename Op::S> weights;
  Real* positions;  // [kTileKeys]: what they add to a row
  // Rows of the first of the heads; those of the others follow at the stride of heads.
  const char* key_rows[DecodeTiling<Op>::kTileKeys];
  const char* value_rows[DecodeTiling<Op>::kTileKeys];

  DecodeScratch(Scratch& scratch, const Problem& p, const DecodeTiling<Op>& t)
      : queries(scratch.take<Unit>(t.heads * t.query_units)),
        state(scratch, t, t.heads * t.rows),
        scores(scratch.take<Real>(t.heads * t.rows * DecodeTiling<Op>::kTileKeys)),
        converted(scratch.take<Unit>(t.step_keys * larger(t.key_units, t.value_columns))),
        masks(scratch.take<TileMask>(t.heads)),
        weights(scratch, DecodeTiling<Op>::kTileKeys, Op::kDepth > 1),
        positions(scratch.take<Real>(p.positions ? DecodeTiling<Op>::kTileKeys : 0)) {}
};

}  // namespace
}  // namespace attn::cpu
