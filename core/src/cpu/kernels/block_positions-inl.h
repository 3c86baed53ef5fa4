// The gradients of positions within a block of keys, and the sums of tables' over all blocks.
//
// What a block adds to a head's table is summed on its own, and added to the sum of all blocks in
// the order of the tasks: the same for any number of threads.
#pragma once

#include <cstdint>

#include "cpu/kernels/position_gradients-inl.h"
#include "cpu/kernels/query_gradients-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/transpose-inl.h"
#include "cpu/kernels/turn-inl.h"

namespace attn::cpu {
namespace {

inline bool wants_query_features(const BackwardProblem& p) {
  return p.grad_position_query || (p.positions.of_queries.is_content && p.grad_query);
}

inline bool wants_key_features(const BackwardProblem& p) {
  return p.grad_position_key || (p.positions.of_keys.is_content && p.grad_key);
}

inline bool wants_positions(const BackwardProblem& p) {
  return wants_query_features(p) || wants_key_features(p) || p.grad_key_table || p.grad_query_table;
}

// The gradient of one table.
template <class Op>
struct GradTableSum {
  using S = typename Op::S;
  using Real = typename S::Real;
  const PositionTerm& term;
  const HeadRows& gradient;
  int64_t heads;  // 1 if all share the table; 0: not wanted
  int64_t columns;
  HeadRows sum;  // in Reals
  Turn* turns;   // [heads]

  GradTableSum(Scratch& scratch, const HeadRows& gradient_, const PositionTerm& term_, int64_t Hq)
      : term(term_),
        gradient(gradient_),
        heads(heads_of(gradient, Hq)),
        columns(round_up(term.width, S::kWidth)),
        turns(scratch.take<Turn>(heads)) {
    if (heads > 0) {
      sum = rows_of_sum<S>(scratch, gradient, 1, term.num_table_rows, heads, term.width);
    }
  }

  static int64_t heads_of(const HeadRows& gradient, int64_t Hq) {
    if (!gradient) return 0;
    return gradient.stride_h == 0 ? 1 : Hq;
  }

  Real* row(int64_t h, int64_t place) const {
    return reinterpret_cast<Real*>(sum.row(0, place, h));
  }

  template <class F>
  void each_row(F&& visit) const {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t place = 0; place < term.num_table_rows; ++place) visit(h, place);
    }
  }

  void clear() const {
    each_row([&](int64_t h, int64_t place) { attn::cpu::clear(row(h, place), columns); });
    attn::cpu::clear(turns, heads);
  }

  // Adds rows of distances when all that come before `turn` have.
  void add(int64_t h, int64_t turn, const DistanceTable& table, KeyRange range,
           const Real* more) const {
    turns[h].wait_for(turn);
    for (int64_t r = range.begin; r < range.end; ++r, more += columns) {
      Real* to = reinterpret_cast<Real*>(table.row(sum, h, r));
      for (int64_t c = 0; c < columns; ++c) to[c] += more[c];
    }
    turns[h].end(turn);
  }

  void store(double scale) const {
    each_row([&](int64_t h, int64_t place) {
      store_row<S>(gradient.row(0, place, h), gradient.dtype, row(h, place), term.width,
                   static_cast<Real>(scale));
    });
  }
};

// Those of both tables.
template <class Op>
struct GradTableSums {
  GradTableSum<Op> of_queries, of_keys;

  GradTableSums(Scratch& scratch, const BackwardProblem& p)
      : of_queries(scratch, p.grad_key_table, p.positions.of_queries, p.Hq),
        of_keys(scratch, p.grad_query_table, p.positions.of_keys, p.Hq) {}

  void clear() const {
    of_queries.clear();
    of_keys.clear();
  }

  void store(double scale) const {
    of_queries.store(scale);
    of_keys.store(scale);
  }
};

// What a block sums for each of the G query heads of its key head.
template <class Op>
struct BlockPositionScratch {
  using S = typename Op::S;
  using Real = typename S::Real;
  PositionGradients<S> of_queries, of_keys;
  Real* by_query;            // [kTileQueries, kTileKeys]: the gradients of a tile's scores
  int64_t key_columns;       // of key features, in whole vectors
  int64_t key_table_size;    // of what a block reaches of one head's table
  int64_t query_table_size;  // likewise
  Real* grad_keys;        // [G, block_keys, key_columns]; of the block itself if keys are features
  Real* grad_key_tables;  // [G, key_table_size]
  Real* grad_query_tables;  // [G, query_table_size]

  BlockPositionScratch(Scratch& scratch, const BackwardProblem& p, const BackwardTiling<Op>& t)
      : of_queries(scratch, p.positions.of_queries, wants_query_features(p),
                   static_cast<bool>(p.grad_key_table), kTileQueries, kTileKeys),
        of_keys(scratch, p.positions.of_keys, wants_key_features(p),
                static_cast<bool>(p.grad_query_table), kTileKeys, kTileQueries),
        by_query(scratch.take<Real>(of_queries.wanted() ? kTileQueries * kTileKeys : 0)),
        key_columns(round_up(p.positions.of_keys.width, S::kWidth)),
        key_table_size(table_size(p.grad_key_table, p.positions.of_queries, p, t)),
        query_table_size(table_size(p.grad_query_table, p.positions.of_keys, p, t)),
        grad_keys(scratch.take<Real>(p.grad_position_key ? p.G * t.block_keys * key_columns : 0)),
        grad_key_tables(scratch.take<Real>(p.G * key_table_size)),
        grad_query_tables(scratch.take<Real>(p.G * query_table_size)) {}

  bool wanted() const { return of_queries.wanted() || of_keys.wanted(); }

 private:
  static int64_t table_size(const HeadRows& gradient, const PositionTerm& term, const Problem& p,
                            const BackwardTiling<Op>& t) {
    const int64_t rows = smaller(term.num_distances, p.Mq + t.block_keys);  // of distances
    return gradient ? rows * round_up(term.width, S::kWidth) : 0;
  }
};

// One block of keys of one key head.
template <class Op>
class BlockPositions {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;

  BlockPositions(const BackwardProblem& p, const BackwardTiling<Op>& t, BlockPositionScratch<Op>& s,
                 const GradTableSums<Op>& sums, const Sequence& sequence, int64_t key_head,
                 int64_t block)
      : p_(p),
        t_(t),
        s_(s),
        sums_(sums),
        sequence_(sequence),
        of_queries_(p.positions, false, sequence),
        of_keys_(p.positions, true, sequence),
        key_head_(key_head),
        block_(block),
        keys_{block * t.block_keys, smaller((block + 1) * t.block_keys, sequence.Mkv)} {}

  void begin() {
    if (!s_.wanted()) return;
    if (sequence_.Mq > 0 && keys_.begin < keys_.end) {
      const KeyRange queries{0, sequence_.Mq};
      if (of_queries_.rows > 0) query_reach_ = of_queries_.reach(queries, keys_);
      if (of_keys_.rows > 0) key_reach_ = of_keys_.reach(keys_, queries);
    }
    if (p_.grad_position_key) clear(s_.grad_keys, p_.G * t_.block_keys * s_.key_columns);
    clear(s_.grad_key_tables, p_.G * s_.key_table_size);
    clear(s_.grad_query_tables, p_.G * s_.query_table_size);
  }

  // Adds what a tile's score gradients [kTileKeys, kTileQueries] against `keys` make.
  void add(const QueryTile<Op>& tile, KeyRange keys, const Real* grads,
           const QueryGradients<Op>& queries) {
    if (!s_.wanted()) return;
    if (s_.of_queries.wanted()) {
      transpose_by_squares<S, kTileKeys, kTileQueries>(s_.by_query, grads, keys.end - keys.begin,
                                                       tile.n);
    }
    const bool adds_to_queries = !queries.is_empty() || p_.positions.of_queries.is_content;
    const auto add_head = [&](int64_t h, KeyRange lines, int64_t row) {
      const int64_t group = h - key_head_ * p_.G;
      if (s_.of_queries.wanted()) {
        s_.of_queries.add(p_.positions.of_queries, of_queries_, sequence_.b, h, lines, keys,
                          s_.by_query + row * kTileKeys, kTileKeys, queries.position_row(row),
                          queries.stride(), adds_to_queries,
                          s_.grad_key_tables + group * s_.key_table_size, query_reach_.begin);
      }
      if (s_.of_keys.wanted()) {
        s_.of_keys.add(p_.positions.of_keys, of_keys_, sequence_.b, h, keys, lines, grads + row,
                       kTileQueries, grad_key(group, keys.begin), s_.key_columns, true,
                       s_.grad_query_tables + group * s_.query_table_size, key_reach_.begin);
      }
    };
    each_head(p_, sequence_, key_head_, {tile.first, tile.first + tile.n}, add_head);
  }

  // Stores what is the block's own, and adds the rest to the sums.
  void finish() {
    for (int64_t group = 0; s_.wanted() && group < p_.G; ++group) {
      const int64_t h = key_head_ * p_.G + group;
      const HeadRows& to = p_.grad_position_key;
      for (int64_t j = keys_.begin; to && j < keys_.end; ++j) {
        store_row<S>(to.row(sequence_.b, j, h), to.dtype, grad_key(group, j),
                     p_.positions.of_keys.width, static_cast<Real>(p_.scale));
      }
      add_to_sum(sums_.of_queries, of_queries_, group, query_reach_,
                 s_.grad_key_tables + group * s_.key_table_size);
      add_to_sum(sums_.of_keys, of_keys_, group, key_reach_,
                 s_.grad_query_tables + group * s_.query_table_size);
    }
  }

 private:
  Real* grad_key(int64_t group, int64_t key) const {
    return s_.grad_keys + (group * t_.block_keys + key - keys_.begin) * s_.key_columns;
  }

  // Every task adds to a table that all heads share, in order.
  void add_to_sum(const GradTableSum<Op>& sum, const DistanceTable& table, int64_t group,
                  KeyRange reach, const Real* more) const {
    if (sum.heads == 0) return;
    const int64_t of_head = sequence_.index * t_.blocks + block_;
    const int64_t task = (sequence_.index * p_.Hkv + key_head_) * t_.blocks + block_;
    if (sum.heads == 1) {
      sum.add(0, task * p_.G + group, table, reach, more);
    } else {
      sum.add(key_head_ * p_.G + group, of_head, table, reach, more);
    }
  }

  const BackwardProblem& p_;
  const BackwardTiling<Op>& t_;
  BlockPositionScratch<Op>& s_;
  const GradTableSums<Op>& sums_;
  const Sequence& sequence_;
  const DistanceTable of_queries_, of_keys_;
  const int64_t key_head_, block_;
  const KeyRange keys_;
  KeyRange query_reach_, key_reach_;  // the rows of each table that the block reaches
};

}  // namespace
}  // namespace attn::cpu
