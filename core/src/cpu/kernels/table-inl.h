// Fills an instruction set's kernel table: the one place where dtypes meet operands.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/forward-inl.h"
#include "cpu/simd/vec_array.h"

namespace attn::cpu {
namespace {

// Calls f<Operand>() with the operands that problems of this dtype are multiplied with.
template <class S, class BFloat16Operand, class F>
auto with_operand(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64: return f.template operator()<SingleOperand<VecArray<double, 4>>>();
    case DType::kBFloat16: return f.template operator()<BFloat16Operand>();
    default: return f.template operator()<SingleOperand<S>>();
  }
}

template <class S, class BFloat16Operand>
size_t forward_workspace(const ForwardProblem& p, int workers) {
  return with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
    return static_cast<size_t>(tiled_forward_workspace<Op>(p, workers));
  });
}

template <class S, class BFloat16Operand>
void forward(const ForwardProblem& p, void* workspace, const TaskRunner& runner) {
  with_operand<S, BFloat16Operand>(p.query.dtype, [&]<class Op>() {
    tiled_forward<Op>(p, workspace, runner);
  });
}

template <class S, class BFloat16Operand>
constexpr KernelTable make_kernel_table(const char* isa) {
  return {isa, forward_workspace<S, BFloat16Operand>, forward<S, BFloat16Operand>, nullptr, nullptr};
}

}  // namespace
}  // namespace attn::cpu
