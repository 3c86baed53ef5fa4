// Fills a kernel table with what multiplies by one operand.
#pragma once

#include <type_traits>

#include "cpu/kernel_table.h"
#include "cpu/kernels/backward-inl.h"
#include "cpu/kernels/bias_gradient-inl.h"
#include "cpu/kernels/decode-inl.h"
#include "cpu/kernels/forward-inl.h"
#include "cpu/kernels/linear-inl.h"
#include "cpu/kernels/merge-inl.h"
#include "cpu/kernels/parameter_gradients-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/split_lse-inl.h"
#include "cpu/kernels/stores-inl.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {
namespace {

// Multiplies in float64, with as many bytes to a vector as S has.
template <class S>
using DoubleOperand = SingleOperand<VecArray<double, sizeof(typename S::Vec) / sizeof(double)>>;

template <class Op>
struct Kernels {
  using ByVectors = typename Op::ByVectors;
  // Few rows do not repay cutting keys into pieces.
  using ForDecoding = std::conditional_t<HasPieces<Op>, ByVectors, Op>;

  // Decoding and the tiled forward, each for its own sequences, take turns with the workspace.
  static size_t forward_workspace(const ForwardProblem& p, int workers) {
    const bool may_decode = p.sequences || p.G * p.Mq <= kDecodeRows;
    const bool may_tile = p.G * p.most_queries > kDecodeRows;
    return static_cast<size_t>(larger(may_decode ? decode_workspace<ForDecoding>(p, workers) : 0,
                                      may_tile ? tiled_forward_workspace<Op>(p, workers) : 0));
  }
  static void forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
    bool decodes = false, tiles = false;
    for (int64_t s = 0; s < p.num_sequences; ++s) {
      (is_decode(p, p.sequence(s)) ? decodes : tiles) = true;
    }
    if (p.sequences) clear_outside_sequences<typename Op::S>(p);
    if (decodes) decode_forward<ForDecoding>(p, workspace, runner);
    if (tiles) tiled_forward<Op>(p, workspace, runner);
  }
  // The passes of a backward take turns with what the split lses leave of the workspace.
  static size_t backward_workspace(const BackwardProblem& problem, int workers) {
    BackwardProblem p = problem;
    Scratch shared(nullptr);
    place_split_lses<Op>(p, shared);
    const int64_t bias = writes_grad_bias(p) ? 0 : bias_gradient_workspace<Op>(p, workers);
    const int64_t sums = larger(bias, parameter_gradients_workspace<Op>(p, workers));
    const int64_t passes =
        larger(split_lses_workspace<Op>(p, workers), attention_backward_workspace<Op>(p, workers));
    return static_cast<size_t>(shared.used() + larger(passes, sums));
  }
  static void backward(const BackwardProblem& problem, void* workspace, const TaskRunner& runner) {
    BackwardProblem p = problem;
    Scratch shared(workspace);
    place_split_lses<Op>(p, shared);
    void* rest = shared.rest();
    split_large_lses<Op>(p, rest, runner);
    const bool with_bias = writes_grad_bias(p);
    if (with_bias || p.grad_query || p.grad_key || p.grad_value || wants_positions(p)) {
      attention_backward<Op>(p, rest, runner);
    }
    if (p.grad_bias && !with_bias) bias_gradient<Op>(p, rest, runner);
    if (wants_parameters(p)) parameter_gradients<Op>(p, rest, runner);
  }
  // Merging multiplies nothing by pairs.
  using MergeOperand = SingleOperand<typename Op::S>;
  static void merge_forward(const MergeForwardProblem& p, const TaskRunner& runner) {
    run_merge<MergeOperand, MergeForward>(p, runner);
  }
  static void merge_backward(const MergeBackwardProblem& p, const TaskRunner& runner) {
    run_merge<MergeOperand, MergeBackward>(p, runner);
  }
  static size_t linear_workspace(const LinearProblem& p, int workers) {
    return static_cast<size_t>(linear_layer_workspace<ByVectors>(p, workers));
  }
};

template <class Op>
constexpr KernelTable make_kernel_table() {
  using K = Kernels<Op>;
  return {.forward_workspace = K::forward_workspace,
          .forward = K::forward,
          .backward_workspace = K::backward_workspace,
          .backward = K::backward,
          .merge_forward = K::merge_forward,
          .merge_backward = K::merge_backward,
          .linear_workspace = K::linear_workspace,
          .linear = linear_layer<typename K::ByVectors>};
}

}  // namespace
}  // namespace attn::cpu
