// The backward of exact attention: dQ, dK and dV in one pass, parallel over blocks of keys.
//
// Each block owns its rows of dK and dV; query_gradients-inl.h sums dQ over the blocks.
// A bias that repeats along no axis gets its gradient in the same pass.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <cstdint>

#include "cpu/kernels/backward_block-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/kernels/tasks-inl.h"

namespace attn::cpu {
namespace {

// One call, as its tasks see it.
template <class Op>
struct BackwardCall {
  using S = typename Op::S;
  const BackwardProblem& p;
  BackwardTiling<Op> tiling;
  Scratch shared;
  GradQuerySum<Op> query_sum;
  GradKeySum<Op> key_sum;
  GradTableSums<Op> table_sums;

  BackwardCall(const BackwardProblem& problem, void* workspace)
      : p(problem),
        tiling(problem),
        shared(workspace),
        query_sum(shared, problem, tiling),
        key_sum(shared, problem, tiling),
        table_sums(shared, problem) {}

  void begin() {
    clear(query_sum.turns, query_sum.num_turns);
    table_sums.clear();
    if (p.sequences) clear_outside_sequences();
    if (!key_sum.used) return;
    clear(key_sum.turns, p.Hkv);
    const int64_t rows = p.Mkv * p.Hkv;
    clear(key_sum.keys, rows * tiling.widths.key_columns);
    clear(key_sum.values, rows * tiling.widths.value_columns);
  }

  void run_block(int64_t task, BackwardScratch<Op>& scratch) const {
    const auto [head, block] = block_of(task);
    const Sequence sequence = p.sequence(head / p.Hkv);
    BackwardBlock<Op>(p, tiling, scratch, query_sum, key_sum, table_sums, sequence, head % p.Hkv,
                      block)
        .run();
  }

  void store_sums() const {
    table_sums.store(p.scale);
    for (int64_t row = 0; key_sum.used && row < p.Mkv * p.Hkv; ++row) {
      store_key_row<S>(p, 0, row / p.Hkv, row % p.Hkv,
                       key_sum.keys + row * tiling.widths.key_columns,
                       key_sum.values + row * tiling.widths.value_columns);
    }
  }

 private:
  static constexpr int64_t kHeadsTogether = 8;

  struct HeadBlock {
    int64_t head;  // of those of all sequences
    int64_t block;
  };

  // Blocks of a head wait for each other to add to dQ: threads wait less if a few heads go
  // together, first the first block of each. Sums that sequences share, or of tables, have turns in
  // another order: that of one head after the other.
  HeadBlock block_of(int64_t task) const {
    const int64_t most = key_sum.used || p.positions ? 1 : kHeadsTogether;
    const int64_t first = task / (most * tiling.blocks) * most;
    const int64_t heads = smaller(most, p.num_sequences * p.Hkv - first);
    const int64_t place = task - first * tiling.blocks;
    return {first + place % heads, place / heads};
  }

  // What no sequence owns has gradient 0.
  void clear_outside_sequences() const {
    each_query_outside_sequences(
        p, [&](int64_t begin, int64_t end) { clear_rows(p.grad_query, begin, end, p.Hq, p.K); });
    if (key_sum.used) return;
    const int64_t first = p.sequences.k_start[0], last = p.sequences.k_start[p.sequences.count];
    clear_rows(p.grad_key, 0, first, p.Hkv, p.K);
    clear_rows(p.grad_key, last, p.Mkv, p.Hkv, p.K);
    clear_rows(p.grad_value, 0, first, p.Hkv, p.Kv);
    clear_rows(p.grad_value, last, p.Mkv, p.Hkv, p.Kv);
  }
};

template <class Op>
int64_t attention_backward_workspace(const BackwardProblem& p, int workers) {
  const BackwardTiling<Op> tiling(p);
  Scratch shared(nullptr);
  GradQuerySum<Op>(shared, p, tiling);
  GradKeySum<Op>(shared, p, tiling);
  GradTableSums<Op>(shared, p);
  return shared.used() +
         busy_workers(workers, tiling.tasks) * scratch_bytes_of<BackwardScratch<Op>>(p, tiling);
}

template <class Op>
void attention_backward(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
  BackwardCall<Op> call(p, workspace);
  call.begin();
  run_with_scratch<BackwardScratch<Op>>(
      runner, call.tiling.tasks, call.shared.rest(),
      [&](int64_t task, BackwardScratch<Op>& scratch) { call.run_block(task, scratch); }, p,
      call.tiling);
  call.store_sums();
}

}  // namespace
}  // namespace attn::cpu
