// The forward for few query rows over many keys: keys and values are read where they lie, once.
//
// Work is cut into splits of a fixed number of keys, merged in order, so that threads share even a
// single sequence and the sums never depend on how many there are. A task takes several key heads
// of a split together: the rows of neighbouring heads are neighbours in memory.
// Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
#pragma once

#include <cstdint>

#include "cpu/kernels/attend_row-inl.h"
#include "cpu/kernels/blocks-inl.h"
#include "cpu/kernels/decode_products-inl.h"
#include "parallel/task_runner.h"

namespace attn::cpu {
namespace {

template <class Op>
struct DecodeTiling {
  using Real = typename Op::S::Real;
  static constexpr int64_t kSplitKeys = 1024;
  static constexpr int64_t kTileKeys = 64;
  static constexpr int64_t kRunBytes = 4096;          // of neighbouring heads' rows, read in one go
  static constexpr int64_t kPartialBytes = 16 << 20;  // of partial results, at least one sequence's

  int64_t rows;           // of one key head, at most: G * Mq
  int64_t key_units;      // units of a packed query
  int64_t value_columns;  // Kv in whole vectors
  int64_t splits;         // of the longest sequence
  int64_t heads;          // key heads per task
  int64_t groups;         // of heads, per sequence
  int64_t wave;           // sequences whose partial results are kept at a time
  int64_t tasks;          // per wave: a split of a group each

  explicit DecodeTiling(const Problem& p)
      : rows(smaller(p.G * p.most_queries, kDecodeRows)),
        key_units(round_up(units_of<Op>(p.K), Op::S::kWidth)),
        value_columns(round_up(p.Kv, Op::S::kWidth)),
        splits(splits_of(p.most_keys)),
        heads(smaller(larger(kRunBytes / (p.K * element_bytes(p.key.dtype)), 1), p.Hkv)),
        groups((p.Hkv + heads - 1) / heads) {
    const int64_t partial_bytes =
        p.Hkv * splits * rows * (value_columns + 2) * static_cast<int64_t>(sizeof(Real));
    wave = splits > 1 ? kPartialBytes / larger(partial_bytes, 1) : p.num_sequences;
    wave = larger(smaller(wave, p.num_sequences), 1);
    tasks = wave * groups * splits;
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
  Unit* queries;          // [heads, rows, key_units]
  DecodeState<Op> state;  // [heads, rows]
  Real* scores;           // [rows, kTileKeys]
  RowWeights<Op> weights;
  const char* key_rows[DecodeTiling<Op>::kTileKeys];
  const char* value_rows[DecodeTiling<Op>::kTileKeys];

  DecodeScratch(Scratch& scratch, const DecodeTiling<Op>& t)
      : queries(scratch.take<Unit>(t.heads * t.rows * t.key_units)),
        state(scratch, t, t.heads * t.rows),
        scores(scratch.take<Real>(t.rows * DecodeTiling<Op>::kTileKeys)),
        weights(scratch, DecodeTiling<Op>::kTileKeys) {}
};

// One split of the keys for a group of key heads.
template <class Op>
class DecodeSplit {
 public:
  using S = typename Op::S;
  using Real = typename S::Real;
  using Tiling = DecodeTiling<Op>;

  DecodeSplit(const ForwardProblem& p, const Tiling& t, DecodeScratch<Op>& s,
              const Sequence& sequence, int64_t group, int64_t split)
      : p_(p),
        t_(t),
        s_(s),
        sequence_(sequence),
        rows_(p.G * sequence.Mq),
        first_head_(group * t.heads),
        heads_(smaller(t.heads, p.Hkv - first_head_)),
        begin_(split * Tiling::kSplitKeys),
        end_(smaller(begin_ + Tiling::kSplitKeys, sequence.Mkv)) {}

  void run() {
    for (int64_t head = 0; head < heads_; ++head) load_queries(head);
    const KeyRange all = keys_of_all(sequence_);
    const int64_t end = smaller(end_, all.end);
    int64_t begin = larger(begin_, all.begin / Tiling::kTileKeys * Tiling::kTileKeys);
    for (; begin < end; begin += Tiling::kTileKeys) {
      const int64_t n = smaller(Tiling::kTileKeys, end - begin);
      for (int64_t head = 0; head < heads_; ++head) {
        if (sees_any(head, begin, n)) attend_tile(head, begin, n);
      }
    }
  }

  // The result, if this is the only split.
  void store() {
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t row = head * t_.rows + r;
        store_result(head, r, s_.state.running[row], out(row));
      }
    }
  }

  // Hands the split's state to the merge; `to` holds [wave, Hkv, splits, rows].
  void store_partial(const DecodeState<Op>& to) {
    for (int64_t head = 0; head < heads_; ++head) {
      const int64_t place = partial_row(head, begin_ / Tiling::kSplitKeys);
      for (int64_t r = 0; r < rows_; ++r) {
        to.running[place + r] = s_.state.running[head * t_.rows + r];
      }
      Real* target = to.out + place * t_.value_columns;
      const Real* source = out(head * t_.rows);
      for (int64_t c = 0; c < rows_ * t_.value_columns; ++c) target[c] = source[c];
    }
  }

  // Merges the splits' states of this group's heads, first to last, and stores the results.
  void merge(const DecodeState<Op>& from) {
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t r = 0; r < rows_; ++r) {
        RunningSoftmax<Real> running;
        Real* sum = out(0);
        for (int64_t c = 0; c < t_.value_columns; ++c) sum[c] = 0;
        for (int64_t split = 0; split < Tiling::splits_of(sequence_.Mkv); ++split) {
          const int64_t place = partial_row(head, split) + r;
          merge_state(running, sum, from.running[place], from.out + place * t_.value_columns);
        }
        store_result(head, r, running, sum);
      }
    }
  }

 private:
  Real* out(int64_t r) { return s_.state.out + r * t_.value_columns; }

  int64_t partial_row(int64_t head, int64_t split) const {
    const int64_t in_wave = sequence_.index % t_.wave;
    return ((in_wave * p_.Hkv + first_head_ + head) * t_.splits + split) * t_.rows;
  }

  QueryRow query(int64_t head, int64_t r) const {
    return query_row(p_, sequence_, first_head_ + head, r);
  }

  // Whether block sparsity lets any row see keys of the tile.
  bool sees_any(int64_t head, int64_t begin, int64_t n) const {
    bool any = !p_.blocks;
    for (int64_t r = 0; r < rows_ && !any; ++r) {
      any = sees_blocks(p_.blocks, query(head, r).h, query(head, r).i, {begin, begin + n});
    }
    return any;
  }

  void load_queries(int64_t head) {
    const char* rows[kDecodeRows];
    query_rows(rows, p_, p_.query, sequence_, first_head_ + head, 0, rows_);
    pack_rows<Op>(queries(head), t_.key_units, rows, p_.query.dtype, rows_, p_.K);
    for (int64_t r = 0; r < rows_; ++r) s_.state.running[head * t_.rows + r] = {};
    Real* state = out(head * t_.rows);
    for (int64_t c = 0; c < rows_ * t_.value_columns; ++c) state[c] = 0;
  }

  typename Op::Unit* queries(int64_t head) { return s_.queries + head * t_.rows * t_.key_units; }

  void attend_tile(int64_t head, int64_t begin, int64_t n) {
    key_rows(s_.key_rows, p_.key, sequence_, first_head_ + head, begin, n);
    key_rows(s_.value_rows, p_.value, sequence_, first_head_ + head, begin, n);
    score_tile(head, n);
    bool excluding = false;
    for (int64_t r = 0; r < rows_; ++r) excluding |= softmax(head, r, begin, n);
    with_source<Op>(p_.value.dtype, [&]<DType kSource>() {
      if (excluding && !values_finite<kSource>(n)) {
        add_values_skipping_zeros<kSource>(head, n);
      } else {
        add_values<kSource>(head, n);
      }
      return true;
    });
  }

  void score_tile(int64_t head, int64_t n) {
    with_source<Op>(p_.key.dtype, [&]<DType kSource>() {
      for (int64_t k = 0; k < n; k += S::kWidth) {
        // Rows of different heads lie pages apart, where no hardware prefetcher follows.
        for (int64_t j = k; j < smaller(k + S::kWidth, n); ++j) {
          prefetch_row(s_.value_rows[j], p_.Kv * element_bytes(p_.value.dtype));
        }
        for (int64_t r = 0; r < rows_; ++r) {
          S::store(s_.scores + r * Tiling::kTileKeys + k,
                   dot_keys<Op, kSource>(queries(head) + r * t_.key_units, s_.key_rows + k, n - k,
                                         p_.K));
        }
      }
      return true;
    });
  }

  // Returns whether the row excludes any key of the tile.
  bool softmax(int64_t head, int64_t r, int64_t begin, int64_t n) {
    const QueryRow at = query(head, r);
    const KeyRange seen = sequence_.keys_of(at.i);
    Real* scores = s_.scores + r * Tiling::kTileKeys;
    const int64_t row = head * t_.rows + r;
    const Real rescale = attend_row<Op, true>(p_, {sequence_, at.h, at.i, begin, n}, seen, scores,
                                              s_.weights, s_.state.running[row]);
    if (rescale != Real(1)) scale_row<S>(out(row), t_.value_columns, rescale);
    return p_.blocks || has_score_bias(p_) || p_.dropout.enabled || seen.begin > begin ||
           seen.end < begin + n;
  }

  template <DType kSource>
  bool values_finite(int64_t n) {
    auto flag = Op::no_flag();
    for (int64_t k = 0; k < n; k += Op::kDepth) {
      for (int64_t c = 0; c < p_.Kv; c += S::kWidth) {
        flag = Op::flag_nonfinite(
            flag, Op::template load_columns<kSource>(s_.value_rows + k, n - k, c, p_.Kv));
      }
    }
    return !Op::is_set(flag);
  }

  template <DType kSource>
  void add_values(int64_t head, int64_t n) {
    int64_t r = 0;
    for (; r + 4 <= rows_; r += 4) add_values_of_rows<kSource, 4, 2>(head, r, n);
    if (r + 2 <= rows_) add_values_of_rows<kSource, 2, 4>(head, r, n), r += 2;
    if (r < rows_) add_values_of_rows<kSource, 1, 8>(head, r, n);
  }

  template <DType kSource, int kRows, int kVectors>
  void add_values_of_rows(int64_t head, int64_t r, int64_t n) {
    const auto add = [&]<int kCount, bool kWhole>(int64_t column) {
      accumulate_values<Op, kSource, kRows, kCount, kWhole>(
          out(head * t_.rows + r), t_.value_columns, s_.scores + r * Tiling::kTileKeys,
          Tiling::kTileKeys, s_.value_rows, n, column, p_.Kv);
    };
    int64_t column = 0;
    for (; column + kVectors * S::kWidth <= p_.Kv; column += kVectors * S::kWidth) {
      add.template operator()<kVectors, true>(column);
    }
    for (; column < p_.Kv; column += S::kWidth) add.template operator()<1, false>(column);
  }

  // As multiply() with skip_zeros: a probability of 0 keeps what a mask excludes out.
  template <DType kSource>
  void add_values_skipping_zeros(int64_t head, int64_t n) {
    for (int64_t r = 0; r < rows_; ++r) {
      const typename Op::Unit* probabilities = s_.scores + r * Tiling::kTileKeys;
      for (int64_t k = 0; k < n; ++k) {
        const Real p = Op::element(probabilities + k / Op::kDepth, k % Op::kDepth);
        if (p == Real(0)) continue;
        for (int64_t c = 0; c < t_.value_columns; c += S::kWidth) {
          Real* to = out(head * t_.rows + r) + c;
          S::store(to, S::fma(S::set1(p), load_elements<S, kSource>(s_.value_rows[k], c, p_.Kv),
                              S::load(to)));
        }
      }
    }
  }

  void merge_state(RunningSoftmax<Real>& running, Real* sum, const RunningSoftmax<Real>& more,
                   const Real* out) {
    if (more.total == Real(0)) return;
    const Real before = running.maximum;
    if (more.maximum > before) running.maximum = more.maximum;
    // All scores were NaN if there is a sum without a maximum; any finite reference keeps that.
    const Real reference = running.maximum == -kInfinity<Real> ? Real(0) : running.maximum;
    Real factors[2 * S::kWidth];
    S::store(factors, S::exp2(S::set1(before - reference)));
    S::store(factors + S::kWidth, S::exp2(S::set1(more.maximum - reference)));
    const Real old_factor = factors[0];
    const Real new_factor = more.maximum == -kInfinity<Real> ? Real(1) : factors[S::kWidth];
    running.total = running.total * old_factor + more.total * new_factor;
    for (int64_t c = 0; c < t_.value_columns; c += S::kWidth) {
      const auto scaled = S::mul(S::load(sum + c), S::set1(old_factor));
      S::store(sum + c, S::fma(S::load(out + c), S::set1(new_factor), scaled));
    }
  }

  void store_result(int64_t head, int64_t r, const RunningSoftmax<Real>& running,
                    const Real* from) {
    finish_row<S>(p_, sequence_, query(head, r), running, from);
  }

  const ForwardProblem& p_;
  const Tiling& t_;
  DecodeScratch<Op>& s_;
  const Sequence& sequence_;
  const int64_t rows_, first_head_, heads_, begin_, end_;
};

template <class Op>
int64_t decode_scratch_bytes(const DecodeTiling<Op>& tiling) {
  Scratch scratch(nullptr);
  DecodeScratch<Op>(scratch, tiling);
  return scratch.used();
}

template <class Op>
int64_t decode_partial_rows(const ForwardProblem& p, const DecodeTiling<Op>& tiling) {
  return tiling.splits > 1 ? tiling.wave * p.Hkv * tiling.splits * tiling.rows : 0;
}

template <class Op>
int64_t decode_workspace(const ForwardProblem& p, int workers) {
  const DecodeTiling<Op> tiling(p);
  Scratch shared(nullptr);
  DecodeState<Op>(shared, tiling, decode_partial_rows(p, tiling));
  return shared.used() + busy_workers(workers, tiling.tasks) * decode_scratch_bytes<Op>(tiling);
}

// One wave of sequences, as its tasks see it.
template <class Op>
struct DecodeCall {
  const ForwardProblem& p;
  DecodeTiling<Op> tiling;
  Scratch shared;
  DecodeState<Op> partial;  // [wave, Hkv, splits, rows], if there are several splits
  int64_t scratch_bytes;
  char* scratch;
  int64_t first_sequence = 0;

  DecodeCall(const ForwardProblem& problem, void* workspace, int workers)
      : p(problem),
        tiling(problem),
        shared(workspace),
        partial(shared, tiling, decode_partial_rows(problem, tiling)),
        scratch_bytes(decode_scratch_bytes<Op>(tiling)),
        scratch(shared.take<char>(busy_workers(workers, tiling.tasks) * scratch_bytes)) {}

  void attend(int64_t task, int worker) const {
    const int64_t index = task % tiling.splits;
    with_split(task / tiling.splits, index, worker, [&](DecodeSplit<Op>& split) {
      split.run();
      tiling.splits > 1 ? split.store_partial(partial) : split.store();
    });
  }
  void merge(int64_t task, int worker) const {
    with_split(task, 0, worker, [&](DecodeSplit<Op>& split) { split.merge(partial); });
  }

 private:
  // Only for a split that the sequence has.
  template <class F>
  void with_split(int64_t group, int64_t split, int worker, F&& f) const {
    const int64_t index = first_sequence + group / tiling.groups;
    if (index >= p.num_sequences) return;
    const Sequence sequence = p.sequence(index);
    if (!is_decode(p, sequence) || split >= DecodeTiling<Op>::splits_of(sequence.Mkv)) return;
    Scratch memory(scratch + worker * scratch_bytes);
    DecodeScratch<Op> pieces(memory, tiling);
    DecodeSplit<Op> work(p, tiling, pieces, sequence, group % tiling.groups, split);
    f(work);
  }
};

// Attends the sequences of at most kDecodeRows rows per key head.
template <class Op>
void decode_forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
  DecodeCall<Op> call(p, workspace, runner.workers);
  const auto attend = [](int64_t task, int worker, void* opaque) {
    static_cast<const DecodeCall<Op>*>(opaque)->attend(task, worker);
  };
  const auto merge = [](int64_t task, int worker, void* opaque) {
    static_cast<const DecodeCall<Op>*>(opaque)->merge(task, worker);
  };
  for (; call.first_sequence < p.num_sequences; call.first_sequence += call.tiling.wave) {
    runner.run(call.tiling.tasks, attend, &call);
    if (call.tiling.splits > 1) runner.run(call.tiling.wave * call.tiling.groups, merge, &call);
  }
}

}  // namespace
}  // namespace attn::cpu
