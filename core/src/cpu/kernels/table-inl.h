// Fills an instruction set's kernel table: the one place where dtypes meet operands.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/backward-inl.h"
#include "cpu/kernels/bias_gradient-inl.h"
#include "cpu/kernels/decode-inl.h"
#include "cpu/kernels/forward-inl.h"
#include "cpu/kernels/linear-inl.h"
#include "cpu/kernels/merge-inl.h"
#include "cpu/kernels/parameter_gradients-inl.h"
#include "cpu/kernels/split_lse-inl.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {
namespace {

// Calls f<Operand>() with the operands that problems of this dtype are multiplied with.
template <class S, class BFloat16Operand, class F>
auto with_operand(DType dtype, F&& f) {
  using Double = VecArray<double, sizeof(typename S::Vec) / sizeof(double)>;
  switch (dtype) {
    case DType::kFloat64: return f.template operator()<SingleOperand<Double>>();
    case DType::kBFloat16: return f.template operator()<BFloat16Operand>();
    default: return f.template operator()<SingleOperand<S>>();
  }
}

template <class S, class BFloat16Operand>
struct Kernels {
  // Sequences that are for one way of computing and for the other take turns with the workspace.
  static size_t forward_workspace(const ForwardProblem& p, int workers) {
    return with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
      const bool may_decode = p.sequences || p.G * p.Mq <= kDecodeRows;
      const bool may_tile = p.G * p.most_queries > kDecodeRows;
      return static_cast<size_t>(larger(may_decode ? decode_workspace<Op>(p, workers) : 0,
                                        may_tile ? tiled_forward_workspace<Op>(p, workers) : 0));
    });
  }
  static void forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
    bool decodes = false, tiles = false;
    for (int64_t s = 0; s < p.num_sequences; ++s) {
      (is_decode(p, p.sequence(s)) ? decodes : tiles) = true;
    }
    with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
      if (p.sequences) clear_outside_sequences<typename Op::S>(p);
      if (decodes) decode_forward<Op>(p, workspace, runner);
      if (tiles) tiled_forward<Op>(p, workspace, runner);
    });
  }
  // The passes of a backward take turns with what the split lses leave of the workspace.
  static size_t backward_workspace(const BackwardProblem& problem, int workers) {
    return with_operand<S, BFloat16Operand>(problem.query.dtype, [&]<class Op>() {
      BackwardProblem p = problem;
      Scratch shared(nullptr);
      place_split_lses<Op>(p, shared);
      const int64_t sums = larger(bias_gradient_workspace<Op>(p, workers),
                                  parameter_gradients_workspace<Op>(p, workers));
      const int64_t passes = larger(split_lses_workspace<Op>(p, workers),
                                    attention_backward_workspace<Op>(p, workers));
      return static_cast<size_t>(shared.used() + larger(passes, sums));
    });
  }
  static void backward(const BackwardProblem& problem, void* workspace, const TaskRunner& runner) {
    with_operand<S, BFloat16Operand>(problem.query.dtype, [&]<class Op>() {
      BackwardProblem p = problem;
      Scratch shared(workspace);
      place_split_lses<Op>(p, shared);
      void* rest = shared.take<char>(0);
      split_large_lses<Op>(p, rest, runner);
      const bool with_bias = writes_grad_bias<Op>(p);
      if (with_bias || p.grad_query || p.grad_key || p.grad_value || wants_positions(p)) {
        attention_backward<Op>(p, rest, runner);
      }
      if (p.grad_bias && !with_bias) bias_gradient<Op>(p, rest, runner);
      if (wants_parameters(p)) parameter_gradients<Op>(p, rest, runner);
    });
  }
  static void merge_forward(const MergeForwardProblem& p, const TaskRunner& runner) {
    with_operand<S, SingleOperand<S>>(p.dtype,
                                      [&]<class Op>() { run_merge<Op, MergeForward>(p, runner); });
  }
  static void merge_backward(const MergeBackwardProblem& p, const TaskRunner& runner) {
    with_operand<S, SingleOperand<S>>(p.dtype,
                                      [&]<class Op>() { run_merge<Op, MergeBackward>(p, runner); });
  }
  static size_t linear_workspace(const LinearProblem& p, int workers) {
    return with_operand<S, BFloat16Operand>(p.dtype, [&]<class Op>() {
      return static_cast<size_t>(linear_layer_workspace<Op>(p, workers));
    });
  }
  static void linear(const LinearProblem& p, void* workspace, const TaskRunner& runner) {
    with_operand<S, BFloat16Operand>(p.dtype,
                                     [&]<class Op>() { linear_layer<Op>(p, workspace, runner); });
  }
};

template <class S, class BFloat16Operand>
constexpr KernelTable make_kernel_table(const char* isa) {
  using K = Kernels<S, BFloat16Operand>;
  return {isa,         K::forward_workspace, K::forward,        K::backward_workspace,
          K::backward, K::merge_forward,     K::merge_backward, K::linear_workspace,
          K::linear};
}

}  // namespace
}  // namespace attn::cpu
