// The forward for few query rows over many keys: keys and values are read where they lie, once.
//
// Work is cut into splits of a fixed number of keys, merged in order, so that threads share even a
// single sequence and the sums never depend on how many there are. A task takes several key heads
// of a split together: the rows of neighbouring heads are neighbours in memory.
// Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
#pragma once

#include <cstdint>

#include "cpu/kernels/decode_tile-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "parallel/task_runner.h"

namespace attn::cpu {
namespace {

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
    if constexpr (HasTiles<Op>) {
      if (decodes_by_tiles<Op>(rows_)) return attend<true>();
    }
    attend<false>();
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
        clear(sum, t_.value_columns);
        for (int64_t split = 0; split < Tiling::splits_of(sequence_.Mkv); ++split) {
          const int64_t place = partial_row(head, split) + r;
          merge_state(running, sum, from.running[place], from.out + place * t_.value_columns);
        }
        store_result(head, r, running, sum);
      }
    }
  }

 private:
  template <bool kByTiles>
  void attend() {
    typename Op::Registers registers;
    const KeyRange heads{first_head_, first_head_ + heads_};
    const KeyRange all = keys_of_all(sequence_);
    const int64_t end = smaller(end_, all.end);
    int64_t begin = larger(begin_, all.begin / Tiling::kTileKeys * Tiling::kTileKeys);
    const auto tile_at = [&](int64_t key) {
      return KeyRange{smaller(key, end), smaller(key + Tiling::kTileKeys, end)};
    };
    for (; begin < end; begin += Tiling::kTileKeys) {
      DecodeTile<Op, kByTiles>(p_, t_, s_, registers, sequence_, heads, tile_at(begin))
          .attend(tile_at(begin + Tiling::kTileKeys));
    }
  }

  Real* out(int64_t r) { return s_.state.out + r * t_.value_columns; }

  int64_t partial_row(int64_t head, int64_t split) const {
    const int64_t in_wave = sequence_.index % t_.wave;
    return ((in_wave * p_.Hkv + first_head_ + head) * t_.splits + split) * t_.rows;
  }

  void load_queries(int64_t head) {
    const char* rows[kDecodeRows];
    query_rows(rows, p_, p_.query, sequence_, first_head_ + head, 0, rows_);
    typename Op::Unit* const queries = s_.queries + head * t_.query_units;
    if (decodes_by_tiles<Op>(rows_)) {
      pack_transposed<Op>(queries, rows, p_.query.dtype, rows_, p_.K);
    } else {
      pack_rows<Op>(queries, t_.key_units, rows, p_.query.dtype, rows_, p_.K);
    }
    for (int64_t r = 0; r < rows_; ++r) s_.state.running[head * t_.rows + r] = {};
    clear(out(head * t_.rows), rows_ * t_.value_columns);
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
    finish_row<S>(p_, sequence_, query_row(p_, sequence_, first_head_ + head, r), running, from);
  }

  const ForwardProblem& p_;
  const Tiling& t_;
  DecodeScratch<Op>& s_;
  const Sequence& sequence_;
  const int64_t rows_, first_head_, heads_, begin_, end_;
};

template <class Op>
int64_t decode_partial_rows(const ForwardProblem& p, const DecodeTiling<Op>& tiling) {
  return tiling.splits > 1 ? tiling.wave * p.Hkv * tiling.splits * tiling.rows : 0;
}

template <class Op>
int64_t decode_workspace(const ForwardProblem& p, int workers) {
  const DecodeTiling<Op> tiling(p);
  Scratch shared(nullptr);
  DecodeState<Op>(shared, tiling, decode_partial_rows(p, tiling));
  return shared.used() +
         busy_workers(workers, tiling.tasks) * scratch_bytes_of<DecodeScratch<Op>>(p, tiling);
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
        scratch_bytes(scratch_bytes_of<DecodeScratch<Op>>(problem, tiling)),
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
    DecodeScratch<Op> pieces(memory, p, tiling);
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
