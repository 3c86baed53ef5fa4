// Fills an instruction set's kernel table: the one place where dtypes meet operands.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/backward-inl.h"
#include "cpu/kernels/bias_gradient-inl.h"
#include "cpu/kernels/decode-inl.h"
#include "cpu/kernels/forward-inl.h"
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
  static size_t forward_workspace(const ForwardProblem& p, int workers) {
    return with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
      return static_cast<size_t>(is_decode(p) ? decode_workspace<Op>(p, workers)
                                              : tiled_forward_workspace<Op>(p, workers));
    });
  }
  static void forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
    with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
      is_decode(p) ? decode_forward<Op>(p, workspace, runner)
                   : tiled_forward<Op>(p, workspace, runner);
    });
  }
  static size_t backward_workspace(const BackwardProblem& p, int workers) {
    return with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
      return static_cast<size_t>(larger(attention_backward_workspace<Op>(p, workers),
                                        bias_gradient_workspace<Op>(p, workers)));
    });
  }
  static void backward(const BackwardProblem& p, void* workspace, const TaskRunner& runner) {
    with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
      if (p.grad_query || p.grad_key || p.grad_value) {
        attention_backward<Op>(p, workspace, runner);
      }
      if (p.grad_bias) bias_gradient<Op>(p, workspace, runner);
    });
  }
};

template <class S, class BFloat16Operand>
constexpr KernelTable make_kernel_table(const char* isa) {
  using K = Kernels<S, BFloat16Operand>;
  return {isa, K::forward_workspace, K::forward, K::backward_workspace, K::backward};
}

}  // namespace
}  // namespace attn::cpu
