// The forward of exact attention, tiled: a block of query rows against one tile of keys at a time.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <cstdint>

#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/forward_tiling-inl.h"
#include "cpu/kernels/masked_keys-inl.h"
#include "cpu/kernels/multiply-inl.h"
#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/tasks-inl.h"
#include "cpu/kernels/upcoming_rows-inl.h"

namespace attn::cpu {
namespace {

// Attends one block of query rows.
template <class Op>
class ForwardBlock {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  ForwardBlock(const ForwardProblem& p, const ForwardTiling<Op>& t, ForwardScratch<Op>& s,
               const QueryBlock& block)
      : p_(p),
        t_(t),
        s_(s),
        block_(block),
        sequence_(block.sequence),
        key_head_(block.key_head),
        first_(block.first),
        rows_(block.n) {}

  // `next` is the block that this worker is likely to attend after it.
  void run(const QueryBlock& next) {
    load_queries();
    const KeyRange all = seen_by(0, rows_);
    KeyRange tile = t_.tile_of(sequence_, all.begin);
    for (; tile.begin < all.end; tile = t_.tile_of(sequence_, tile.begin + t_.keys)) {
      upcoming_ = rows_after(tile, all, next);
      attend_tile(tile.begin, tile.end - tile.begin);
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

  KeyRange seen_by(int64_t first, int64_t rows) const { return block_.seen_by(p_, first, rows); }

  // What is packed after a tile: the one that follows it, or what the next block begins with. With
  // block sparsity that may be little of them.
  UpcomingRows rows_after(KeyRange tile, KeyRange all, const QueryBlock& next) const {
    if (p_.blocks) return {};
    const int64_t following = tile.begin + t_.keys;
    if (following < all.end) {
      return {p_, sequence_, key_head_, t_.tile_of(sequence_, following), {0, 0}, rows_};
    }
    if (next.n == 0) return {};
    const KeyRange keys = t_.tile_of(next.sequence, next.seen_by(p_, 0, next.n).begin);
    return {p_, next.sequence, next.key_head, keys, {next.first, next.first + next.n}, rows_};
  }

  QueryRow query(int64_t r) const { return block_.query(p_, r); }

  void load_queries() {
    query_rows(s_.rows, p_, p_.query, sequence_, key_head_, first_, rows_);
    pack_rows<Op>(s_.queries, t_.key_units, s_.rows, p_.query.dtype, rows_, p_.K);
    for (int64_t r = 0; r < rows_; ++r) s_.running[r] = {};
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
    const auto seen_from = [&](QueryRow at) {
      const KeyRange band = sequence_.keys_of(at.i);
      return p_.blocks ? KeyRange{larger(band.begin, first), band.end} : band;
    };
    ScoreRow<Op> weighed[kRowsAtOnce];
    for (int64_t r = part.begin; r < part.end; ++r) {
      prefetch_bias(strip, rows, r + kRowsAhead, range.begin, range.end - range.begin);
      const int64_t i = strip + r;
      ScoreRow<Op>& row = weighed[r - part.begin];
      row.scores = s_.scores + r * t_.score_stride;
      row.units = s_.units + r * t_.unit_stride;
      const QueryRow at = query(i);
      const Real* const positions = p_.positions ? s_.positions.row(r) : nullptr;
      const Real rescale = keys.weigh(row, at, seen_from(at), positions, s_.running[i]);
      if (rescale != Real(1)) scale_row<S>(out(i), t_.value_columns, rescale);
    }
    for (int64_t r = part.begin; r < part.end; ++r) {
      const int64_t i = strip + r;
      const QueryRow at = query(i);
      const KeyRange seen = seen_from(at);
      upcoming_.prefetch_some();
      keys.exponentiate(weighed[r - part.begin], at, seen, s_.running[i]);
      if (Op::kDepth > 1 && sees_few(seen)) add_residuals(out(i), seen, range);
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
  const QueryBlock& block_;
  const Sequence& sequence_;
  const int64_t key_head_, first_, rows_;
  UpcomingRows upcoming_;            // prefetched while the tile at hand is attended
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
    const QueryBlock block = tiling.block_of_task(p, task);
    if (block.n == 0) return;
    ForwardBlock<Op>(p, tiling, scratch, block).run(tiling.block_of_task(p, task + runner.workers));
  };
  run_with_scratch<ForwardScratch<Op>>(runner, tiling.tasks, workspace, attend, p, tiling);
}

}  // namespace
}  // namespace attn::cpu
