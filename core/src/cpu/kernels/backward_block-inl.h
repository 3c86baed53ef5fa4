// The backward of exact attention for one block of keys: all that its rows add to gradients.
#pragma once

#include <cstdint>

#include "cpu/kernels/backward_sums-inl.h"
#include "cpu/kernels/block_positions-inl.h"
#include "cpu/kernels/gradient_tile-inl.h"
#include "cpu/kernels/query_gradients-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/transpose-inl.h"
#include "cpu/kernels/upcoming_rows-inl.h"

namespace attn::cpu {
namespace {

// Whether the pass writes the gradient of the bias too: dS as it stands, each tile once.
inline bool writes_grad_bias(const BackwardProblem& p) {
  const bool sums =
      p.grad_bias_sums_b || p.grad_bias_sums_h || p.grad_bias_sums_m || p.grad_bias_sums_n;
  return p.grad_bias && !sums && p.grad_bias.stride_n == 1 && !p.sequences && !p.blocks;
}

template <class Op>
struct BackwardScratch {
  using Real = typename Op::S::Real;
  KeyBlock<Op> block;
  QueryTile<Op> tile;
  GradientTile<Op> gradients;
  typename Op::Unit* keys_stacked;  // per tile of keys, a right operand: depth is keys
  bool* keys_finite;                // [tiles of the block]
  Real* grad_keys;                  // [block_keys, key_columns]
  Real* grad_values;                // [block_keys, value_columns]
  Real* grad_queries;               // [kTileQueries, query_columns]
  Real* grad_bias;                  // [kWidth, kTileKeys]: rows of dBias
  const char** rows;                // [max(block_keys, kTileQueries)]
  BlockPositionScratch<Op> positions;

  BackwardScratch(Scratch& scratch, const BackwardProblem& p, const BackwardTiling<Op>& t)
      : block(scratch, t.widths, t.block_keys),
        tile(scratch, p, t.widths),
        gradients(scratch, p, p.positions || writes_grad_bias(p)),
        positions(scratch, p, t) {
    keys_stacked = scratch.take<typename Op::Unit>(
        panel_units<Op>(units_of<Op>(t.block_keys), t.widths.key_columns));
    keys_finite = scratch.take<bool>(t.block_keys / kTileKeys);
    grad_keys = scratch.take<Real>(t.block_keys * t.widths.key_columns);
    if (p.positions.of_keys.is_content) positions.grad_keys = grad_keys;
    grad_values = scratch.take<Real>(t.block_keys * t.widths.value_columns);
    grad_queries = scratch.take<Real>(kTileQueries * t.query_columns);
    grad_bias = scratch.take<Real>(writes_grad_bias(p) ? Op::S::kWidth * kTileKeys : 0);
    rows = scratch.take<const char*>(larger(t.block_keys, kTileQueries));
  }
};

// Writes one row of dK and dV, where they are wanted.
template <class S>
void store_key_row(const BackwardProblem& p, int64_t b, int64_t row, int64_t key_head,
                   const typename S::Real* grad_key, const typename S::Real* grad_value) {
  using Real = typename S::Real;
  if (p.grad_key) {
    store_row<S>(p.grad_key.row(b, row, key_head), p.grad_key.dtype, grad_key, p.K,
                 static_cast<Real>(p.scale));
  }
  if (p.grad_value) {
    store_row<S>(p.grad_value.row(b, row, key_head), p.grad_value.dtype, grad_value, p.Kv, Real(1));
  }
}

// One block of keys of one key head, against every query tile that sees it.
template <class Op>
class BackwardBlock {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  BackwardBlock(const BackwardProblem& p, const BackwardTiling<Op>& t, BackwardScratch<Op>& s,
                const GradQuerySum<Op>& query_sum, const GradKeySum<Op>& key_sum,
                const GradTableSums<Op>& table_sums, const Sequence& sequence, int64_t key_head,
                int64_t block)
      : p_(p),
        t_(t),
        s_(s),
        queries_(p, t, s.grad_queries, query_sum, block),
        positions_(p, t, s.positions, table_sums, sequence, key_head, block),
        key_sum_(key_sum),
        sequence_(sequence),
        key_head_(key_head),
        block_(block),
        writes_grad_bias_(attn::cpu::writes_grad_bias(p)) {}

  void run() {
    if (block_ > 0 && block_ * t_.block_keys >= sequence_.Mkv) return pass_turn();
    load_keys();
    positions_.begin();
    const int64_t rows = p_.G * sequence_.Mq;
    for (int64_t first = 0; first < rows; first += t_.tile_rows) {
      s_.tile.place(p_, sequence_, key_head_, first, smaller(first + t_.tile_rows, rows));
      const KeyRange seen = s_.tile.seen;
      if (seen.begin >= seen.end) {
        if (block_ == 0 && queries_.wanted()) queries_.store_zeros(s_.tile);
        clear_grad_bias(0, s_.block.n);
        continue;
      }
      const int64_t block_end = s_.block.begin + s_.block.n;
      if (seen.begin >= block_end || seen.end <= s_.block.begin) {
        clear_grad_bias(0, s_.block.n);
        continue;
      }
      queries_.set_empty(true);
      if (s_.tile.sees(p_, s_.block.begin, block_end)) {
        s_.tile.load(p_, s_.rows);
        s_.tile.load_stacked(p_, s_.rows);
        s_.gradients.upcoming = rows_after(first, rows);
        differentiate_tile();
      } else {
        clear_grad_bias(0, s_.block.n);
      }
      if (queries_.wanted()) {
        queries_.add(s_.tile, seen.begin / t_.block_keys, (seen.end - 1) / t_.block_keys);
      }
    }
    positions_.finish();
    if (key_sum_.used) {
      add_to_sum();
    } else {
      store_keys();
    }
  }

 private:
  // Units from one tile of keys to the next in keys_stacked.
  int64_t stacked_stride() const {
    return panel_units<Op>(units_of<Op>(kTileKeys), t_.widths.key_columns);
  }

  void load_keys() {
    s_.block.begin = block_ * t_.block_keys;
    s_.block.n = smaller(t_.block_keys, sequence_.Mkv - s_.block.begin);
    s_.block.load(p_, t_.widths, s_.rows, sequence_, key_head_);
    key_rows(s_.rows, p_.key, sequence_, key_head_, s_.block.begin, s_.block.n);
    for (int64_t k = 0; k < s_.block.n; k += kTileKeys) {
      s_.keys_finite[k / kTileKeys] =
          pack_stacked<Op>(s_.keys_stacked + k / kTileKeys * stacked_stride(), s_.rows + k,
                           p_.key.dtype, smaller(kTileKeys, s_.block.n - k), p_.K);
    }
    clear(s_.grad_keys, s_.block.n * t_.widths.key_columns);
    clear(s_.grad_values, s_.block.n * t_.widths.value_columns);
  }

  // What is read after a tile: the sums of its dQ, and the tile that follows it.
  UpcomingQueries rows_after(int64_t first, int64_t rows) const {
    UpcomingQueries upcoming(p_, sequence_, key_head_, units_of<Op>(s_.block.n));
    queries_.add_sum_to(upcoming, s_.tile);
    const int64_t next = first + t_.tile_rows;
    const KeyRange following{next, smaller(next + t_.tile_rows, rows)};
    if (next < rows) {
      upcoming.add(p_.query, p_.K, following);
      upcoming.add(p_.grad_out, p_.Kv, following);
      upcoming.add(p_.out, p_.Kv, following);
    }
    return upcoming;
  }

  void differentiate_tile() {
    const int64_t block_end = s_.block.begin + s_.block.n;
    if (!sees_one_block_list()) {
      for (int64_t k = 0; k < s_.block.n; k += kTileKeys) {
        const int64_t n = smaller(kTileKeys, s_.block.n - k);
        const int64_t begin = s_.block.begin + k;
        if (s_.tile.sees(p_, begin, begin + n)) {
          differentiate_keys(k, n, static_cast<bool>(p_.blocks));
        } else {
          clear_grad_bias(k, n);
        }
      }
      return;
    }
    const QueryRow at = s_.tile.query(p_, 0);
    const KeyRange within{larger(s_.block.begin, s_.tile.seen.begin / kTileKeys * kTileKeys),
                          smaller(block_end, s_.tile.seen.end)};
    each_block_run(p_.blocks, at.h, at.i, within, [&](int64_t from, int64_t to) {
      const int64_t end = to - s_.block.begin;
      for (int64_t k = from - s_.block.begin; k < end;) {
        const int64_t n = smaller(end, k / kTileKeys * kTileKeys + kTileKeys) - k;
        differentiate_keys(k, n, false);
        k += n;
      }
    });
  }

  // Whether the tile's rows are of one block of queries, and key blocks begin at whole units and at
  // whole counters of dropout's draws.
  bool sees_one_block_list() const {
    if (!p_.blocks || p_.blocks.size % larger(Op::kDepth, kDrawsPerCounter) != 0) return false;
    const QueryRow first = s_.tile.query(p_, 0), last = s_.tile.query(p_, s_.tile.n - 1);
    return first.h == last.h && first.i / p_.blocks.size == last.i / p_.blocks.size;
  }

  // Keys [k, k + n) of the block, within one tile of keys.
  void differentiate_keys(int64_t k, int64_t n, bool excludes_blocks) {
    s_.gradients.template compute<true>(p_, t_.widths, s_.block, s_.tile, k, n, excludes_blocks);
    if (p_.grad_value) {  // dV += P^T dO
      add_product(s_.gradients.probabilities, s_.tile.grad_out_stacked,
                  s_.grad_values + k * t_.widths.value_columns, t_.widths.value_columns, n, p_.Kv,
                  s_.tile.grad_out_finite);
    }
    if (p_.grad_key) {  // dK += dS^T Q
      add_product(s_.gradients.grad_scores, s_.tile.queries_stacked,
                  s_.grad_keys + k * t_.widths.key_columns, t_.widths.key_columns, n, p_.K,
                  s_.tile.queries_finite);
    }
    if (p_.grad_query) add_queries_of_keys(k, n);
    if (writes_grad_bias_) store_grad_bias(k, n);
    const KeyRange keys{s_.block.begin + k, s_.block.begin + k + n};
    positions_.add(s_.tile, keys, s_.gradients.grad_biases, queries_);
    queries_.set_empty(false);
  }

  // sum += left right: n rows of keys, over the depth of the tile's query rows.
  void add_product(const Real* left, const typename Op::Unit* right, Real* sum, int64_t stride,
                   int64_t n, int64_t width, bool finite) {
    Product<Op> product;
    product.a = left;
    product.a_stride = kTileQueries;
    product.b = right;
    product.b_depth = product.depth = units_of<Op>(s_.tile.n);
    product.c = sum;
    product.c_stride = stride;
    product.rows = n;
    product.columns = product.b_columns = width;
    product.accumulate = true;
    product.is_finite = finite;
    product.skip_zeros = true;
    multiply(product, s_.gradients.registers);
  }

  void add_queries_of_keys(int64_t k, int64_t n) {  // dQ += dS K
    const int64_t tile = k / kTileKeys;
    Product<Op> product;
    product.a = s_.gradients.grad_scores_by_depth;
    product.a_stride = kTileQueries;
    product.b = s_.keys_stacked + tile * stacked_stride();
    product.b_depth = units_of<Op>(smaller(kTileKeys, s_.block.n - tile * kTileKeys));
    product.b_begin = k % kTileKeys / Op::kDepth;
    product.depth = units_of<Op>(n);
    product.c = queries_.row(0);
    product.c_stride = queries_.stride();
    product.rows = s_.tile.n;
    product.columns = product.b_columns = p_.K;
    product.accumulate = !queries_.is_empty();
    product.is_finite = s_.keys_finite[tile];
    product.skip_zeros = true;
    multiply<Op, true>(product, s_.gradients.registers);
    if (s_.gradients.has_residuals()) add_query_residuals(s_.block.begin + k, n);
  }

  // Multiplies the rounding residuals of dS, too, in rows that see few keys, all of them among
  // [begin, begin + n).
  void add_query_residuals(int64_t begin, int64_t n) {
    for (int64_t r = 0; r < s_.tile.n; ++r) {
      const KeyRange seen = s_.tile.ranges[r];
      if (!s_.gradients.sees_few_of(seen, begin, n)) continue;
      for (int64_t j = seen.begin; j < seen.end; ++j) {
        const Real residual = s_.gradients.residuals[(j - begin) * kTileQueries + r];
        if (residual == Real(0)) continue;  // excluded keys may hold anything
        const char* key = p_.key.row(sequence_.b, sequence_.key_row(j), key_head_);
        add_residual<S>(queries_.row(r), residual, key, p_.key.dtype, p_.K);
      }
    }
  }

  // No other task writes the tile's rows of dBias for the block's keys [k, k + n), seen or not.
  void clear_grad_bias(int64_t k, int64_t n) {
    if (!writes_grad_bias_) return;
    clear(s_.grad_bias, kTileKeys);
    for (int64_t from = k; from < k + n; from += kTileKeys) {
      for (int64_t r = 0; r < s_.tile.n; ++r) {
        store_grad_bias_row(r, from, smaller(kTileKeys, k + n - from), s_.grad_bias);
      }
    }
  }

  void store_grad_bias(int64_t k, int64_t n) {
    constexpr int W = S::kWidth;
    for (int64_t r = 0; r < s_.tile.n; r += W) {
      transpose_by_squares<S, kTileKeys, kTileQueries>(s_.grad_bias, s_.gradients.grad_biases + r,
                                                       n, W);
      for (int64_t l = 0; l < smaller(W, s_.tile.n - r); ++l) {
        store_grad_bias_row(r + l, k, n, s_.grad_bias + l * kTileKeys);
      }
    }
  }

  void store_grad_bias_row(int64_t r, int64_t k, int64_t n, const Real* from) {
    const DType dtype = p_.grad_bias.dtype;
    const QueryRow at = s_.tile.query(p_, r);
    char* row = p_.grad_bias.row(sequence_.b, at.h, at.i);
    store_row<S>(row + (s_.block.begin + k) * element_bytes(dtype), dtype, from, n, Real(1));
  }

  void store_keys() {
    for (int64_t j = 0; j < s_.block.n; ++j) {
      store_key_row<S>(p_, sequence_.b, sequence_.key_row(s_.block.begin + j), key_head_,
                       s_.grad_keys + j * t_.widths.key_columns,
                       s_.grad_values + j * t_.widths.value_columns);
    }
  }

  // Adds to the rows that other sequences may own too, after all earlier tasks of this head.
  void add_to_sum() {
    Turn& turn = key_sum_.turns[key_head_];
    turn.wait_for(task());
    for (int64_t j = 0; j < s_.block.n; ++j) {
      const int64_t row = sequence_.key_row(s_.block.begin + j) * p_.Hkv + key_head_;
      add_row(key_sum_.keys + row * t_.widths.key_columns, s_.grad_keys + j * t_.widths.key_columns,
              t_.widths.key_columns);
      add_row(key_sum_.values + row * t_.widths.value_columns,
              s_.grad_values + j * t_.widths.value_columns, t_.widths.value_columns);
    }
    turn.end(task());
  }

  static void add_row(Real* sum, const Real* more, int64_t n) {
    for (int64_t c = 0; c < n; ++c) sum[c] += more[c];
  }

  void pass_turn() {
    if (!key_sum_.used) return;
    key_sum_.turns[key_head_].wait_for(task());
    key_sum_.turns[key_head_].end(task());
  }

  // Among those of the key head.
  int64_t task() const { return sequence_.index * t_.blocks + block_; }

  const BackwardProblem& p_;
  const BackwardTiling<Op>& t_;
  BackwardScratch<Op>& s_;
  QueryGradients<Op> queries_;
  BlockPositions<Op> positions_;
  const GradKeySum<Op>& key_sum_;
  const Sequence& sequence_;
  const int64_t key_head_, block_;
  const bool writes_grad_bias_;
};

}  // namespace
}  // namespace attn::cpu
