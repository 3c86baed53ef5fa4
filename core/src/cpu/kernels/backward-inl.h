// The backward of exact attention: dQ, dK and dV in one pass, parallel over blocks of keys.
//
// Each block owns its rows of dK and dV. Blocks add to dQ in the order of their keys, so the sum
// is the same for any number of threads.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <sched.h>

#include <cstdint>

#include "cpu/kernels/gradient_tile-inl.h"
#include "parallel/task_runner.h"

namespace attn::cpu {
namespace {

template <class Op>
struct BackwardTiling {
  using Real = typename Op::S::Real;
  static constexpr int64_t kBlockBytes = 384 * 1024;  // of a block of keys and its gradients

  GradientWidths<Op> widths;
  int64_t block_keys;
  int64_t blocks;  // per (b, key head); at least 1, so that dQ is written even without keys
  int64_t tiles;   // of query rows, per (b, key head)
  int64_t tasks;   // a block each

  explicit BackwardTiling(const Problem& p) : widths(p) {
    const int64_t key_bytes = static_cast<int64_t>(sizeof(Real)) *
                              (widths.key_units + widths.value_units + widths.key_columns +
                               widths.value_columns + widths.key_columns / Op::kDepth);
    block_keys = larger(kBlockBytes / key_bytes / kTileKeys, 1) * kTileKeys;
    block_keys = smaller(block_keys, larger(round_up(p.Mkv, kTileKeys), kTileKeys));
    blocks = larger((p.Mkv + block_keys - 1) / block_keys, 1);
    tiles = (p.G * p.Mq + kTileQueries - 1) / kTileQueries;
    tasks = p.B * p.Hkv * blocks;
  }
};

// dQ of all blocks so far, in Reals; none if every tile meets a single block.
template <class Op>
struct GradQuerySum {
  using Real = typename Op::S::Real;
  Real* sum;       // [B * Hkv, tiles, kTileQueries, key_columns]
  int32_t* turns;  // [B * Hkv, tiles]: the block whose turn it is to add
  int64_t num_turns;

  GradQuerySum(Scratch& scratch, const BackwardProblem& p, const BackwardTiling<Op>& t) {
    num_turns = t.blocks > 1 && p.grad_query ? p.B * p.Hkv * t.tiles : 0;
    sum = scratch.take<Real>(num_turns * kTileQueries * t.widths.key_columns);
    turns = scratch.take<int32_t>(num_turns);
  }
};

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
  Real* grad_queries;               // [kTileQueries, key_columns]
  const char** rows;                // [max(block_keys, kTileQueries)]

  BackwardScratch(Scratch& scratch, const BackwardProblem& p, const BackwardTiling<Op>& t)
      : block(scratch, t.widths, t.block_keys), tile(scratch, t.widths), gradients(scratch, p) {
    keys_stacked = scratch.take<typename Op::Unit>(
        panel_units<Op>(units_of<Op>(t.block_keys), t.widths.key_columns));
    keys_finite = scratch.take<bool>(t.block_keys / kTileKeys);
    grad_keys = scratch.take<Real>(t.block_keys * t.widths.key_columns);
    grad_values = scratch.take<Real>(t.block_keys * t.widths.value_columns);
    grad_queries = scratch.take<Real>(kTileQueries * t.widths.key_columns);
    rows = scratch.take<const char*>(larger(t.block_keys, kTileQueries));
  }
};

// One block of keys of one key head, against every query tile that sees it.
template <class Op>
class BackwardBlock {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  BackwardBlock(const BackwardProblem& p, const BackwardTiling<Op>& t, BackwardScratch<Op>& s,
                const GradQuerySum<Op>& sum, int64_t b, int64_t key_head, int64_t block)
      : p_(p), t_(t), s_(s), sum_(sum), b_(b), key_head_(key_head), block_(block) {}

  void run() {
    load_keys();
    for (int64_t tile = 0; tile < t_.tiles; ++tile) {
      s_.tile.place(p_, b_, key_head_, tile * kTileQueries, p_.G * p_.Mq);
      const KeyRange seen = s_.tile.seen;
      if (seen.begin >= seen.end) {
        if (block_ == 0 && p_.grad_query) store_zero_queries();
        continue;
      }
      if (seen.begin >= s_.block.begin + s_.block.n || seen.end <= s_.block.begin) continue;
      s_.tile.load(p_, s_.rows);
      s_.tile.load_stacked(p_, s_.rows);
      differentiate_tile();
      if (p_.grad_query) {
        add_queries(tile, seen.begin / t_.block_keys, (seen.end - 1) / t_.block_keys);
      }
    }
    store_keys();
  }

 private:
  // Units from one tile of keys to the next in keys_stacked.
  int64_t stacked_stride() const {
    return panel_units<Op>(units_of<Op>(kTileKeys), t_.widths.key_columns);
  }

  void load_keys() {
    s_.block.begin = block_ * t_.block_keys;
    s_.block.n = smaller(t_.block_keys, p_.Mkv - s_.block.begin);
    s_.block.load(p_, t_.widths, s_.rows, b_, key_head_);
    key_rows(s_.rows, p_.key, b_, key_head_, s_.block.begin, s_.block.n);
    for (int64_t k = 0; k < s_.block.n; k += kTileKeys) {
      s_.keys_finite[k / kTileKeys] =
          pack_stacked<Op>(s_.keys_stacked + k / kTileKeys * stacked_stride(), s_.rows + k,
                           p_.key.dtype, smaller(kTileKeys, s_.block.n - k), p_.K);
    }
    for (int64_t c = 0; c < s_.block.n * t_.widths.key_columns; ++c) s_.grad_keys[c] = 0;
    for (int64_t c = 0; c < s_.block.n * t_.widths.value_columns; ++c) s_.grad_values[c] = 0;
  }

  void differentiate_tile() {
    bool first = true;
    for (int64_t k = 0; k < s_.block.n; k += kTileKeys) {
      const int64_t n = smaller(kTileKeys, s_.block.n - k);
      const int64_t begin = s_.block.begin + k;
      if (s_.tile.seen.begin >= begin + n || s_.tile.seen.end <= begin) continue;
      s_.gradients.template compute<true>(p_, t_.widths, s_.block, s_.tile, k, n);
      if (p_.grad_value) add_values(k, n);
      if (p_.grad_key) add_keys(k, n);
      if (p_.grad_query) add_queries_of_keys(k, n, first);
      first = false;
    }
  }

  void add_values(int64_t k, int64_t n) {  // dV += P^T dO
    Product<Op> product;
    product.a = s_.gradients.probabilities;
    product.a_stride = kTileQueries;
    product.b = s_.tile.grad_out_stacked;
    product.b_depth = product.depth = units_of<Op>(s_.tile.n);
    product.c = s_.grad_values + k * t_.widths.value_columns;
    product.c_stride = t_.widths.value_columns;
    product.rows = n;
    product.columns = product.b_columns = p_.Kv;
    product.accumulate = true;
    product.skip_zeros = !s_.tile.grad_out_finite;
    multiply(product);
  }

  void add_keys(int64_t k, int64_t n) {  // dK += dS^T Q
    Product<Op> product;
    product.a = s_.gradients.grad_scores;
    product.a_stride = kTileQueries;
    product.b = s_.tile.queries_stacked;
    product.b_depth = product.depth = units_of<Op>(s_.tile.n);
    product.c = s_.grad_keys + k * t_.widths.key_columns;
    product.c_stride = t_.widths.key_columns;
    product.rows = n;
    product.columns = product.b_columns = p_.K;
    product.accumulate = true;
    product.skip_zeros = !s_.tile.queries_finite;
    multiply(product);
  }

  void add_queries_of_keys(int64_t k, int64_t n, bool first) {  // dQ += dS K
    Product<Op> product;
    product.a = s_.gradients.grad_scores_by_depth;
    product.a_stride = kTileQueries;
    product.b = s_.keys_stacked + k / kTileKeys * stacked_stride();
    product.b_depth = product.depth = units_of<Op>(n);
    product.c = s_.grad_queries;
    product.c_stride = t_.widths.key_columns;
    product.rows = s_.tile.n;
    product.columns = product.b_columns = p_.K;
    product.accumulate = !first;
    product.skip_zeros = !s_.keys_finite[k / kTileKeys];
    multiply<Op, true>(product);
  }

  // Adds this block's dQ of a tile when all earlier blocks have; the last one stores the sum.
  void add_queries(int64_t tile, int64_t first_block, int64_t last_block) {
    if (first_block == last_block) return store_queries(s_.grad_queries);
    const int64_t place = (b_ * p_.Hkv + key_head_) * t_.tiles + tile;
    const int64_t count = s_.tile.n * t_.widths.key_columns;
    Real* sum = sum_.sum + place * kTileQueries * t_.widths.key_columns;
    int32_t* turn = sum_.turns + place;
    if (block_ == first_block) {
      for (int64_t c = 0; c < count; ++c) sum[c] = s_.grad_queries[c];
    } else {
      while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != block_) sched_yield();
      for (int64_t c = 0; c < count; ++c) sum[c] += s_.grad_queries[c];
    }
    if (block_ == last_block) store_queries(sum);
    __atomic_store_n(turn, static_cast<int32_t>(block_ + 1), __ATOMIC_RELEASE);
  }

  void store_queries(const Real* from) {
    for (int64_t r = 0; r < s_.tile.n; ++r) {
      const QueryRow at = query_row(p_, key_head_, s_.tile.first + r);
      store_row<S>(p_.grad_query.row(b_, at.i, at.h), p_.grad_query.dtype,
                   from + r * t_.widths.key_columns, p_.K, static_cast<Real>(p_.scale));
    }
  }

  void store_zero_queries() {
    for (int64_t c = 0; c < s_.tile.n * t_.widths.key_columns; ++c) s_.grad_queries[c] = 0;
    store_queries(s_.grad_queries);
  }

  void store_keys() {
    for (int64_t j = 0; j < s_.block.n; ++j) {
      if (p_.grad_key) {
        store_row<S>(p_.grad_key.row(b_, s_.block.begin + j, key_head_), p_.grad_key.dtype,
                     s_.grad_keys + j * t_.widths.key_columns, p_.K, static_cast<Real>(p_.scale));
      }
      if (p_.grad_value) {
        store_row<S>(p_.grad_value.row(b_, s_.block.begin + j, key_head_), p_.grad_value.dtype,
                     s_.grad_values + j * t_.widths.value_columns, p_.Kv, Real(1));
      }
    }
  }

  const BackwardProblem& p_;
  const BackwardTiling<Op>& t_;
  BackwardScratch<Op>& s_;
  const GradQuerySum<Op>& sum_;
  const int64_t b_, key_head_, block_;
};

template <class Op>
int64_t backward_scratch_bytes(const BackwardProblem& p, const BackwardTiling<Op>& tiling) {
  Scratch scratch(nullptr);
  BackwardScratch<Op>(scratch, p, tiling);
  return scratch.used();
}

template <class Op>
int64_t attention_backward_workspace(const BackwardProblem& p, int workers) {
  const BackwardTiling<Op> tiling(p);
  Scratch shared(nullptr);
  GradQuerySum<Op>(shared, p, tiling);
  return shared.used() +
         busy_workers(workers, tiling.tasks) * backward_scratch_bytes<Op>(p, tiling);
}

template <class Op>
void attention_backward(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
  struct Context {
    const BackwardProblem& p;
    BackwardTiling<Op> tiling;
    Scratch shared;
    GradQuerySum<Op> sum;
    int64_t scratch_bytes;
    char* scratch;

    Context(const BackwardProblem& problem, void* workspace, int workers)
        : p(problem),
          tiling(problem),
          shared(workspace),
          sum(shared, problem, tiling),
          scratch_bytes(backward_scratch_bytes<Op>(problem, tiling)),
          scratch(shared.take<char>(busy_workers(workers, tiling.tasks) * scratch_bytes)) {}
  };
  Context context(p, workspace, runner.workers);
  for (int64_t t = 0; t < context.sum.num_turns; ++t) context.sum.turns[t] = 0;
  runner.run(
      context.tiling.tasks,
      [](int64_t task, int worker, void* opaque) {
        Context& c = *static_cast<Context*>(opaque);
        const int64_t head = task / c.tiling.blocks;
        Scratch scratch(c.scratch + worker * c.scratch_bytes);
        BackwardScratch<Op> pieces(scratch, c.p, c.tiling);
        BackwardBlock<Op>(c.p, c.tiling, pieces, c.sum, head / c.p.Hkv, head % c.p.Hkv,
                          task % c.tiling.blocks)
            .run();
      },
      &context);
}

}  // namespace
}  // namespace attn::cpu
