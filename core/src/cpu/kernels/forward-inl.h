// The forward of exact attention, tiled: a block of query rows against one tile of keys at a time.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <cstdint>

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/masked_keys-inl.h"
#include "cpu/kernels/multiply-inl.h"
#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/strip_positions-inl.h"
#include "cpu/kernels/tasks-inl.h"

namespace attn::cpu {
namespace {

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
  KeyRange* ranges;               // [block_rows]
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
    ranges = scratch.take<KeyRange>(t.block_rows);
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

// One block of query rows of one key head.
template <class Op>
class ForwardBlock {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  ForwardBlock(const ForwardProblem& p, const ForwardTiling<Op>& t, ForwardScratch<Op>& s,
               const Sequence& sequence, int64_t key_head, int64_t block)
      : p_(p),
        t_(t),
        s_(s),
        sequence_(sequence),
        key_head_(key_head),
        first_(block * t.block_rows),
        rows_(smaller(t.block_rows, p.G * sequence.Mq - first_)) {}

  void run() {
    load_queries();
    const KeyRange all = seen_by(0, rows_);
    for (int64_t begin = all.begin / t_.keys * t_.keys; begin < all.end; begin += t_.keys) {
      attend_tile(begin, smaller(t_.keys, sequence_.Mkv - begin));
    }
    for (int64_t r = 0; r < rows_; ++r) {
      if (r + kOutputsAhead < rows_) {
        prefetch_row_to_write(query_row_of(p_.out, sequence_, query(r + kOutputsAhead)),
                              p_.Kv * element_bytes(p_.out.dtype));
      }
      finish_row<S>(p_, sequence_, query(r), s_.running[r], out(r));
    }
  }

 private:
  static constexpr int64_t kRowsAhead = 2;      // from a row to the one whose biases are prefetched
  static constexpr int64_t kOutputsAhead = 16;  // likewise the one whose output is
  // Rows whose maxima are found before any is exponentiated: waiting for one at a time takes long.
  static constexpr int64_t kRowsAtOnce = 4;

  // Which operands of a packed tile are finite throughout.
  struct FiniteTile {
    bool keys = true, values = true;
  };

  // The union of the key ranges of some rows: within a head, both ends follow the queries.
  KeyRange seen_by(int64_t first, int64_t rows) const {
    const int64_t last = first + rows - 1;
    if (query(first).h != query(last).h) return keys_of_all(sequence_);
    return {s_.ranges[first].begin, s_.ranges[last].end};
  }

  QueryRow query(int64_t r) const { return query_row(p_, sequence_, key_head_, first_ + r); }

  void load_queries() {
    query_rows(s_.rows, p_, p_.query, sequence_, key_head_, first_, rows_);
    pack_rows<Op>(s_.queries, t_.key_units, s_.rows, p_.query.dtype, rows_, p_.K);
    for (int64_t r = 0; r < rows_; ++r) {
      s_.running[r] = {};
      s_.ranges[r] = sequence_.keys_of(query(r).i);
    }
    clear(s_.out, rows_ * t_.value_columns);
  }

  void attend_tile(int64_t begin, int64_t n) {
    kept_ = kept_keys(p_, sequence_, begin, n);
    if (kept_ == TileMask::kNothing || !find_wanted_panels(begin, n)) return;
    const FiniteTile finite = pack_tile(begin, n);
    for (int64_t strip = 0; strip < rows_;) {
      const int64_t rows = rows_of_strip(strip);
      each_run(strip, rows, begin, n,
               [&](KeyRange columns) { attend_strip(strip, rows, begin, n, columns, finite); });
      strip += rows;
    }
  }

  // A strip's rows see the same blocks: it ends with a block of queries.
  int64_t rows_of_strip(int64_t strip) const {
    const int64_t rows = smaller(t_.strip_rows, rows_ - strip);
    if (!p_.blocks) return rows;
    const int64_t i = query(strip).i;
    const int64_t block_end = (i / p_.blocks.size + 1) * p_.blocks.size;
    return smaller(rows, smaller(block_end, sequence_.Mq) - i);
  }

  // Calls visit for each run of the tile's columns that any row of the strip sees.
  template <class F>
  void each_run(int64_t strip, int64_t rows, int64_t begin, int64_t n, F&& visit) const {
    KeyRange seen = seen_by(strip, rows);
    seen = {larger(seen.begin, begin), smaller(seen.end, begin + n)};
    if (seen.begin >= seen.end) return;
    if (!p_.blocks) return visit(KeyRange{seen.begin - begin, seen.end - begin});
    const QueryRow at = query(strip);
    each_block_run(p_.blocks, at.h, at.i, seen,
                   [&](int64_t from, int64_t to) { visit(KeyRange{from - begin, to - begin}); });
  }

  // Returns whether there are any: without block sparsity, all.
  bool find_wanted_panels(int64_t begin, int64_t n) {
    const int64_t panels = (n + kPanel<Op> - 1) / kPanel<Op>;
    for (int64_t panel = 0; panel < panels; ++panel) s_.wanted[panel] = !p_.blocks;
    bool any = !p_.blocks;
    for (int64_t strip = 0; p_.blocks && strip < rows_;) {
      const int64_t rows = rows_of_strip(strip);
      each_run(strip, rows, begin, n, [&](KeyRange columns) {
        for (int64_t c = columns.begin / kPanel<Op>; c * kPanel<Op> < columns.end; ++c) {
          s_.wanted[c] = any = true;
        }
      });
      strip += rows;
    }
    return any;
  }

  // Packs the wanted panels.
  FiniteTile pack_tile(int64_t begin, int64_t n) {
    FiniteTile finite;
    const int64_t panels = (n + kPanel<Op> - 1) / kPanel<Op>;
    for (int64_t panel = 0; panel < panels; ++panel) {
      if (!s_.wanted[panel]) continue;
      const int64_t from = panel * kPanel<Op>;
      while (panel < panels && s_.wanted[panel]) ++panel;
      pack_columns({from, smaller(panel * kPanel<Op>, n)}, begin, n, finite);
    }
    return finite;
  }

  void pack_columns(KeyRange part, int64_t begin, int64_t n, FiniteTile& finite) {
    const int64_t count = part.end - part.begin;
    const char** rows = s_.rows + part.begin;
    key_rows(rows, p_.key, sequence_, key_head_, begin + part.begin, count);
    finite.keys &= pack_transposed<Op>(s_.keys + part.begin * column_units<Op>(units_of<Op>(p_.K)),
                                       rows, p_.key.dtype, count, p_.K);
    key_rows(rows, p_.value, sequence_, key_head_, begin + part.begin, count);
    finite.values &= pack_stacked<Op>(s_.values, s_.rows, p_.value.dtype, part, n, p_.Kv);
  }

  // A few rows against columns of the tile that any of them sees.
  void attend_strip(int64_t strip, int64_t rows, int64_t begin, int64_t n, KeyRange columns,
                    FiniteTile finite) {
    const int64_t from = columns.begin / kPanel<Op> * kPanel<Op>;
    const int64_t to = columns.end;

    Product<Op> product;
    product.a = s_.queries + strip * t_.key_units;
    product.a_is_packed = true;
    product.a_stride = t_.key_units;
    product.b = s_.keys + from * column_units<Op>(units_of<Op>(p_.K));
    product.b_depth = units_of<Op>(p_.K);
    product.c = s_.scores;
    product.c_stride = t_.score_stride;
    product.rows = rows;
    product.b_columns = n - from;
    product.columns = to - from;
    product.depth = units_of<Op>(p_.K);
    product.is_finite = finite.keys;
    for (int64_t r = 0; r < kRowsAhead; ++r) prefetch_bias(strip, rows, r, begin + from, to - from);
    multiply(product, s_.registers);

    if (p_.positions) {
      s_.positions.compute(p_, sequence_, key_head_, {first_, first_ + rows_},
                           {first_ + strip, first_ + strip + rows}, {begin, begin + n},
                           {begin + from, begin + to});
    }
    const MaskedKeys<Op, false> keys(p_, sequence_, {begin + from, begin + to}, s_.weights,
                                     kept_ == TileMask::kAll);
    for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
      softmax(keys, strip, {r, smaller(r + kRowsAtOnce, rows)}, rows, begin + columns.begin);
    }

    product.a = s_.units;
    product.a_is_packed = false;
    product.a_stride = t_.unit_stride;
    product.b = s_.values;
    product.b_depth = units_of<Op>(n);
    product.b_begin = from / Op::kDepth;
    product.c = s_.out + strip * t_.value_columns;
    product.c_stride = t_.value_columns;
    product.columns = product.b_columns = p_.Kv;
    product.depth = units_of<Op>(to - from);
    product.accumulate = true;
    product.is_finite = finite.values;
    product.skip_zeros = true;
    multiply(product, s_.registers);
  }

  // Some rows of a strip of `rows`; with block sparsity they see none of the keys before `first`.
  void softmax(const MaskedKeys<Op, false>& keys, int64_t strip, KeyRange part, int64_t rows,
               int64_t first) {
    const KeyRange range = keys.range();
    const auto seen = [&](int64_t i) {
      const KeyRange band = s_.ranges[i];
      return p_.blocks ? KeyRange{larger(band.begin, first), band.end} : band;
    };
    ScoreRow<Op> weighed[kRowsAtOnce];
    for (int64_t r = part.begin; r < part.end; ++r) {
      prefetch_bias(strip, rows, r + kRowsAhead, range.begin, range.end - range.begin);
      const int64_t i = strip + r;
      ScoreRow<Op>& row = weighed[r - part.begin];
      row.scores = s_.scores + r * t_.score_stride;
      row.units = s_.units + r * t_.unit_stride;
      const Real rescale = keys.weigh(row, query(i), seen(i),
                                      p_.positions ? s_.positions.row(r) : nullptr, s_.running[i]);
      if (rescale != Real(1)) scale_row<S>(out(i), t_.value_columns, rescale);
    }
    for (int64_t r = part.begin; r < part.end; ++r) {
      const int64_t i = strip + r;
      keys.exponentiate(weighed[r - part.begin], query(i), seen(i), s_.running[i]);
      if (Op::kDepth > 1 && sees_few(seen(i))) add_residuals(out(i), seen(i), range);
    }
  }

  Real* out(int64_t r) const { return s_.out + r * t_.value_columns; }

  // Of row r of the strip, if it has one. Always inlined: see prefetch-inl.h.
  [[gnu::always_inline]] void prefetch_bias(int64_t strip, int64_t rows, int64_t r, int64_t begin,
                                            int64_t n) const {
    if (!p_.bias || r >= rows) return;
    const QueryRow at = query(strip + r);
    prefetch_tensor_bias(p_, {sequence_, at.h, at.i, begin, n, kept_ == TileMask::kAll});
  }

  // Multiplies the rounding residuals of the probabilities, too, of those `keys` that the row sees.
  void add_residuals(Real* out, KeyRange seen, KeyRange keys) const {
    const int64_t end = smaller(seen.end, keys.end);
    for (int64_t j = larger(seen.begin, keys.begin); j < end; ++j) {
      const Real residual = s_.weights.residuals[j - keys.begin];
      if (residual == Real(0)) continue;  // excluded keys may have any value
      const char* value = p_.value.row(sequence_.b, sequence_.key_row(j), key_head_);
      add_residual<S>(out, residual, value, p_.value.dtype, p_.Kv);
    }
  }

  const ForwardProblem& p_;
  const ForwardTiling<Op>& t_;
  ForwardScratch<Op>& s_;
  const Sequence& sequence_;
  const int64_t key_head_, first_, rows_;
  TileMask kept_ = TileMask::kPart;  // of the tile, by the tensor bias
};

template <class Op>
int64_t tiled_forward_workspace(const ForwardProblem& p, int workers) {
  const ForwardTiling<Op> tiling(p, workers);
  return busy_workers(workers, tiling.tasks) * scratch_bytes_of<ForwardScratch<Op>>(p, tiling);
}

// Attends the sequences that are not for decode_forward.
template <class Op>
void tiled_forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
  const ForwardTiling<Op> tiling(p, runner.workers);
  const auto attend = [&](int64_t task, ForwardScratch<Op>& scratch) {
    // The last blocks come first: under a causal mask they are the longest.
    const int64_t heads = p.num_sequences * p.Hkv;
    const int64_t block = tiling.blocks - 1 - task / heads;
    const int64_t head = task % heads;
    const Sequence sequence = p.sequence(head / p.Hkv);
    // The longest sequence has this block, but does this one?
    if (is_decode(p, sequence)) return;
    if (block * tiling.block_rows >= p.G * sequence.Mq) return;
    ForwardBlock<Op>(p, tiling, scratch, sequence, head % p.Hkv, block).run();
  };
  run_with_scratch<ForwardScratch<Op>>(runner, tiling.tasks, workspace, attend, p, tiling);
}

}  // namespace
}  // namespace attn::cpu
