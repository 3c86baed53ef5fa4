// The forward of exact attention, tiled: a block of query rows against one tile of keys at a time.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <cstdint>

#include "cpu/kernels/multiply-inl.h"
#include "cpu/kernels/rows-inl.h"
#include "cpu/kernels/scores-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "parallel/task_runner.h"

namespace attn::cpu {
namespace {

// Tile sizes. Only `keys` touches the arithmetic, so it depends on widths and dtype alone.
template <class Op>
struct ForwardTiling {
  using Real = typename Op::S::Real;
  static constexpr int64_t kStripRows = 8 * Op::S::kTileRows;
  static constexpr int64_t kTileBytes = 128 * 1024;   // of packed keys and values
  static constexpr int64_t kBlockBytes = 192 * 1024;  // of queries and outputs

  int64_t key_units;      // units of a packed query or key
  int64_t value_columns;  // Kv in whole vectors
  int64_t keys;           // per tile
  int64_t block_rows;     // query rows that share one packed tile
  int64_t blocks;         // per (b, key head)
  int64_t tasks;          // a block each

  ForwardTiling(const Problem& p, int workers) {
    key_units = round_up(units_of<Op>(p.K), Op::S::kWidth);
    value_columns = round_up(p.Kv, Op::S::kWidth);
    const int64_t key_bytes =
        (units_of<Op>(p.K) + value_columns / Op::kDepth) * static_cast<int64_t>(sizeof(Real));
    keys = 256;
    while (keys > 64 && keys * key_bytes > kTileBytes) keys /= 2;
    keys = smaller(keys, round_up(larger(p.Mkv, 1), 64));
    const int64_t row_bytes = (key_units + value_columns) * static_cast<int64_t>(sizeof(Real));
    const int64_t rows = p.G * p.Mq;
    // At least four tasks a worker, so that uneven ones (causal) even out.
    const int64_t share = rows * p.B * p.Hkv / (4 * workers);
    block_rows = smaller(smaller(kBlockBytes / row_bytes, share), rows);
    block_rows = round_up(larger(block_rows, 1), kStripRows);
    blocks = (rows + block_rows - 1) / block_rows;
    tasks = p.B * p.Hkv * blocks;
  }
};

template <class Op>
struct ForwardScratch {
  using Real = typename Op::S::Real;
  using Unit = typename Op::Unit;
  Unit* queries;                  // [block_rows, key_units]
  Real* out;                      // [block_rows, value_columns]
  RunningSoftmax<Real>* running;  // [block_rows]
  KeyRange* ranges;               // [block_rows]
  const char** rows;              // [max(block_rows, keys)]
  Unit* keys;                     // right operand: columns are keys
  Unit* values;                   // right operand: depth is keys
  Real* scores;                   // [kStripRows, keys]
  Real* bias;                     // [keys]
  Real* dropout;                  // [keys]
  int64_t bytes;

  ForwardScratch(void* base, const ForwardTiling<Op>& t) {
    Scratch scratch(base);
    queries = scratch.take<Unit>(t.block_rows * t.key_units);
    out = scratch.take<Real>(t.block_rows * t.value_columns);
    running = scratch.take<RunningSoftmax<Real>>(t.block_rows);
    ranges = scratch.take<KeyRange>(t.block_rows);
    rows = scratch.take<const char*>(larger(t.block_rows, t.keys));
    keys = scratch.take<Unit>(panel_units<Op>(t.key_units, t.keys));
    values = scratch.take<Unit>(panel_units<Op>(units_of<Op>(t.keys), t.value_columns));
    scores = scratch.take<Real>(ForwardTiling<Op>::kStripRows * t.keys);
    bias = scratch.take<Real>(t.keys);
    dropout = scratch.take<Real>(t.keys);
    bytes = scratch.used();
  }
};

// One block of query rows of one key head.
template <class Op>
class ForwardBlock {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  ForwardBlock(const ForwardProblem& p, const ForwardTiling<Op>& t, ForwardScratch<Op>& s,
               int64_t b, int64_t key_head, int64_t block)
      : p_(p),
        t_(t),
        s_(s),
        b_(b),
        key_head_(key_head),
        first_(block * t.block_rows),
        rows_(smaller(t.block_rows, p.G * p.Mq - first_)) {}

  void run() {
    load_queries();
    KeyRange all{p_.Mkv, 0};
    for (int64_t r = 0; r < rows_; ++r) widen(all, s_.ranges[r]);
    for (int64_t begin = all.begin / t_.keys * t_.keys; begin < all.end; begin += t_.keys) {
      attend_tile(begin, smaller(t_.keys, p_.Mkv - begin));
    }
    store();
  }

 private:
  static void widen(KeyRange& all, const KeyRange& more) {
    if (more.begin >= more.end) return;
    all = {smaller(all.begin, more.begin), larger(all.end, more.end)};
  }

  void load_queries() {
    query_rows(s_.rows, p_, p_.query, b_, key_head_, first_, rows_);
    pack_rows<Op>(s_.queries, t_.key_units, s_.rows, p_.query.dtype, rows_, p_.K);
    for (int64_t r = 0; r < rows_; ++r) {
      s_.running[r] = {};
      s_.ranges[r] = p_.keys_of(query_row(p_, key_head_, first_ + r).i);
    }
    for (int64_t c = 0; c < rows_ * t_.value_columns; ++c) s_.out[c] = 0;
  }

  void attend_tile(int64_t begin, int64_t n) {
    key_rows(s_.rows, p_.key, b_, key_head_, begin, n);
    pack_transposed<Op>(s_.keys, s_.rows, p_.key.dtype, n, p_.K);
    key_rows(s_.rows, p_.value, b_, key_head_, begin, n);
    const bool finite = pack_stacked<Op>(s_.values, s_.rows, p_.value.dtype, n, p_.Kv);
    const int64_t strips =
        (rows_ + ForwardTiling<Op>::kStripRows - 1) / ForwardTiling<Op>::kStripRows;
    for (int64_t strip = 0; strip < rows_; strip += ForwardTiling<Op>::kStripRows) {
      prefetch_next_tile(begin + n, strip / ForwardTiling<Op>::kStripRows, strips);
      attend_strip(strip, smaller(ForwardTiling<Op>::kStripRows, rows_ - strip), begin, n, finite);
    }
  }

  // Fetches this strip's share of the tile that comes next, while this one computes: its rows lie
  // too far apart for the hardware to foresee.
  void prefetch_next_tile(int64_t begin, int64_t strip, int64_t strips) const {
    const int64_t share = (t_.keys + strips - 1) / strips;
    const int64_t from = begin + strip * share;
    const int64_t to = smaller(from + share, smaller(begin + t_.keys, p_.Mkv));
    for (int64_t j = from; j < to; ++j) {
      prefetch_row(p_.key.row(b_, j, key_head_), p_.K * element_bytes(p_.key.dtype));
      prefetch_row(p_.value.row(b_, j, key_head_), p_.Kv * element_bytes(p_.value.dtype));
    }
  }

  // A few rows against the tile, restricted to the columns that any of them sees.
  void attend_strip(int64_t strip, int64_t rows, int64_t begin, int64_t n, bool finite) {
    KeyRange seen{p_.Mkv, 0};
    for (int64_t r = 0; r < rows; ++r) widen(seen, s_.ranges[strip + r]);
    const int64_t from = larger(seen.begin - begin, 0) / kPanel<Op> * kPanel<Op>;
    const int64_t to = smaller(seen.end - begin, n);
    if (from >= to) return;

    Product<Op> product;
    product.a = s_.queries + strip * t_.key_units;
    product.a_stride = t_.key_units;
    product.b = s_.keys + from * units_of<Op>(p_.K);
    product.b_depth = units_of<Op>(p_.K);
    product.c = s_.scores;
    product.c_stride = t_.keys;
    product.rows = rows;
    product.b_columns = n - from;
    product.columns = to - from;
    product.depth = units_of<Op>(p_.K);
    multiply(product);

    for (int64_t r = 0; r < rows; ++r) {
      softmax(strip + r, s_.scores + r * t_.keys, begin + from, to - from);
    }

    product.a = s_.scores;
    product.a_stride = t_.keys;
    product.b = s_.values;
    product.b_depth = units_of<Op>(n);
    product.b_begin = from / Op::kDepth;
    product.c = s_.out + strip * t_.value_columns;
    product.c_stride = t_.value_columns;
    product.columns = product.b_columns = p_.Kv;
    product.depth = units_of<Op>(to - from);
    product.accumulate = true;
    product.skip_zeros = !finite;
    multiply(product);
  }

  void softmax(int64_t r, Real* scores, int64_t begin, int64_t n) {
    const QueryRow at = query_row(p_, key_head_, first_ + r);
    ScoreRow<Op> row;
    row.scores = scores;
    row.n = round_up(n, S::kWidth);
    row.begin = s_.ranges[r].begin - begin;
    row.end = smaller(s_.ranges[r].end - begin, n);
    row.scale = static_cast<Real>(p_.scale * kLog2E);
    if (p_.bias) {
      load_bias_row<S>(s_.bias, p_.bias, b_, at.h, at.i, begin, n, static_cast<Real>(kLog2E));
      row.bias = s_.bias;
    }
    if (p_.dropout.enabled) {
      load_dropout_row(s_.dropout, p_.dropout, b_, at.h, at.i, begin, n);
      row.dropout = s_.dropout;
    }
    const Real rescale = softmax_row(row, s_.running[r]);
    if (rescale == Real(1)) return;
    Real* out = s_.out + r * t_.value_columns;
    for (int64_t c = 0; c < t_.value_columns; c += S::kWidth) {
      S::store(out + c, S::mul(S::load(out + c), S::set1(rescale)));
    }
  }

  void store() {
    for (int64_t r = 0; r < rows_; ++r) {
      const QueryRow at = query_row(p_, key_head_, first_ + r);
      const Real total = s_.running[r].total;
      store_row<S>(p_.out.row(b_, at.i, at.h), p_.out.dtype, s_.out + r * t_.value_columns, p_.Kv,
                   total == Real(0) ? Real(0) : Real(1) / total);
      if (p_.lse) p_.lse.at<Real>(b_, at.h, at.i) = log_sum_exp(s_.running[r]);
    }
  }

  const ForwardProblem& p_;
  const ForwardTiling<Op>& t_;
  ForwardScratch<Op>& s_;
  const int64_t b_, key_head_, first_, rows_;
};

template <class Op>
int64_t tiled_forward_workspace(const ForwardProblem& p, int workers) {
  const ForwardTiling<Op> tiling(p, workers);
  return busy_workers(workers, tiling.tasks) * ForwardScratch<Op>(nullptr, tiling).bytes;
}

template <class Op>
void tiled_forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
  struct Context {
    const ForwardProblem& p;
    ForwardTiling<Op> tiling;
    int64_t scratch_bytes;
    char* workspace;
  };
  Context context{p, ForwardTiling<Op>(p, runner.workers), 0, static_cast<char*>(workspace)};
  context.scratch_bytes = ForwardScratch<Op>(nullptr, context.tiling).bytes;
  runner.run(
      context.tiling.tasks,
      [](int64_t task, int worker, void* opaque) {
        Context& c = *static_cast<Context*>(opaque);
        // The last blocks come first: under a causal mask they are the longest.
        const int64_t heads = c.p.B * c.p.Hkv;
        const int64_t block = c.tiling.blocks - 1 - task / heads;
        const int64_t head = task % heads;
        ForwardScratch<Op> scratch(c.workspace + worker * c.scratch_bytes, c.tiling);
        ForwardBlock<Op>(c.p, c.tiling, scratch, head / c.p.Hkv, head % c.p.Hkv, block).run();
      },
      &context);
}

}  // namespace
}  // namespace attn::cpu
