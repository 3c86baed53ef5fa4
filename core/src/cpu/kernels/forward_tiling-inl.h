// How the tiled forward divides its work: tiles of keys, strips and blocks of query rows.
#pragma once

#include <cstdint>

#include "cpu/kernels/masked_keys-inl.h"
#include "cpu/kernels/pack-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "cpu/kernels/strip_positions-inl.h"

namespace attn::cpu {
namespace {

// Some query rows of one key head.
struct QueryBlock {
  Sequence sequence;
  int64_t key_head = 0, first = 0;
  int64_t n = 0;

  QueryRow query(const Problem& p, int64_t r) const {
    return query_row(p, sequence, key_head, first + r);
  }

  // The union of the key ranges of some of them: within a head, both ends follow the queries.
  KeyRange seen_by(const Problem& p, int64_t begin, int64_t rows) const {
    const QueryRow top = query(p, begin), bottom = query(p, begin + rows - 1);
    if (top.h != bottom.h) return keys_of_all(sequence);
    return {sequence.keys_of(top.i).begin, sequence.keys_of(bottom.i).end};
  }
};

// Tile sizes. Only `keys` affects the arithmetic, so it depends on widths and dtype alone.
template <class Op>
struct ForwardTiling {
  using Real = typename Op::S::Real;
  static constexpr int64_t kStripRows = 8 * Op::kTileRows;  // at most
  static constexpr int64_t kTileBytes = 128 * 1024;         // of packed keys and values
  // Of queries and outputs; CPUs with tiles have larger caches.
  static constexpr int64_t kBlockBytes = (HasTiles<Op> ? 1024 : 512) * 1024;
  // With block sparsity, where few rows of a block use what it packs, more than this gains nothing.
  static constexpr int64_t kSparseBlockBytes = 768 * 1024;

  int64_t key_units;      // units of a packed query or key
  int64_t value_columns;  // Kv in whole vectors
  int64_t keys;           // per tile
  int64_t score_stride;   // from a row of scores to the next
  int64_t unit_stride;    // from a row of units of probabilities to the next
  int64_t strip_rows;     // query rows whose scores are held at once
  int64_t block_rows;     // query rows that share one packed tile: whole strips
  int64_t blocks;         // per key head of the longest sequence
  int64_t tasks;          // a block each

  ForwardTiling(const Problem& p, int workers) {
    key_units = row_units<Op>(p.K);
    value_columns = round_up(p.Kv, Op::S::kWidth);
    const int64_t key_bytes =
        (units_of<Op>(p.K) + value_columns / Op::kDepth) * static_cast<int64_t>(sizeof(Real));
    keys = 512;
    while (keys > 64 && keys * key_bytes > kTileBytes) keys /= 2;
    keys = smaller(keys, round_up(larger(p.most_keys, 1), 64));
    // Rows a power of two apart would share a few sets of the cache.
    score_stride = keys + Op::S::kWidth;
    unit_stride = keys / Op::kDepth + Op::S::kWidth;
    strip_rows = strip_rows_of(p);
    const int64_t row_bytes = (key_units + value_columns) * static_cast<int64_t>(sizeof(Real));
    const int64_t rows = p.G * p.most_queries;
    // At least four tasks a worker, so that uneven ones (causal) even out.
    const int64_t share = p.G * p.Mq * p.B * p.Hkv / (4 * workers);
    const int64_t most_bytes = p.blocks ? kSparseBlockBytes : kBlockBytes;
    block_rows = smaller(smaller(most_bytes / row_bytes, share), rows);
    block_rows = round_up(larger(block_rows, 1), strip_rows);
    blocks = (rows + block_rows - 1) / block_rows;
    tasks = p.num_sequences * p.Hkv * blocks;
  }

  // The tile that key j lies in.
  KeyRange tile_of(const Sequence& sequence, int64_t j) const {
    const int64_t begin = j / keys * keys;
    return {begin, smaller(begin + keys, sequence.Mkv)};
  }

  // The rows of a task. The last blocks come first: under a causal mask they are the longest.
  QueryBlock block_of_task(const Problem& p, int64_t task) const {
    if (task >= tasks) return {};
    const int64_t heads = p.num_sequences * p.Hkv;
    const int64_t head = task % heads, first = (blocks - 1 - task / heads) * block_rows;
    const Sequence sequence = p.sequence(head / p.Hkv);
    // The longest sequence has this block, but does this one?
    const int64_t rows = is_decode(p, sequence) ? 0 : p.G * sequence.Mq - first;
    return {sequence, head % p.Hkv, first, larger(smaller(rows, block_rows), 0)};
  }

  // A strip's rows are computed against all keys that any of them sees: in a window these are
  // hardly more than each row sees by itself, if the rows are few compared to its width.
  static int64_t strip_rows_of(const Problem& p) {
    if (p.positions) return kStripRows;
    const int64_t seen = larger(p.band.left + p.band.right + 1, 0);
    const int64_t rows = smaller(seen, 16 * kStripRows) / 16 / Op::kTileRows * Op::kTileRows;
    return larger(rows, 2 * Op::kTileRows);
  }
};

template <class Op>
struct ForwardScratch {
  using S = typename Op::S;
  using Real = typename S::Real;
  using Unit = typename Op::Unit;
  Unit* queries;                  // [block_rows, key_units]
  Real* out;                      // [block_rows, value_columns]
  RunningSoftmax<Real>* running;  // [block_rows]
  const char** rows;              // [max(block_rows, keys)]
  Unit* keys;                     // right operand: columns are keys
  Unit* values;                   // right operand: depth is keys
  Real* scores;                   // [strip_rows, score_stride]
  Unit* units;                    // [strip_rows, unit_stride], of probabilities
  bool* wanted;                   // [keys / kPanel]: panels of the tile that some strip sees
  RowWeights<typename Op::S> weights;
  StripPositions<typename Op::S> positions;
  typename Op::Registers registers;

  ForwardScratch(Scratch& scratch, const Problem& p, const ForwardTiling<Op>& t)
      : weights(scratch, t.keys, Op::kDepth > 1),
        positions(scratch, p, t.block_rows, t.strip_rows, t.keys) {
    queries = scratch.take<Unit>(t.block_rows * t.key_units);
    out = scratch.take<Real>(t.block_rows * t.value_columns);
    running = scratch.take<RunningSoftmax<Real>>(t.block_rows);
    rows = scratch.take<const char*>(larger(t.block_rows, t.keys));
    keys = scratch.take<Unit>(panel_units<Op>(units_of<Op>(p.K), t.keys));
    values = scratch.take<Unit>(panel_units<Op>(units_of<Op>(t.keys), t.value_columns));
    scores = scratch.take<Real>(t.strip_rows * t.score_stride);
    if constexpr (Op::kDepth == 1) {
      units = scores;  // each takes the place of its score
    } else {
      units = scratch.take<Unit>(t.strip_rows * t.unit_stride);
    }
    wanted = scratch.take<bool>(t.keys / kPanel<Op> + 1);
  }
};

}  // namespace
}  // namespace attn::cpu
