// Queues the kernels of the backward in one pass, for one width.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/sm80/one_pass_bias_gradient.cuh"
#include "cuda/sm80/one_pass_gradients.cuh"

namespace attn::cuda::sm80 {

template <class Element, int kWidth>
void launch_one_pass_of(const OnePassArguments& a, void* stream) {
  const BackwardProblem& p = a.backward.problem;
  launch(&one_pass_kernel<Element, kWidth>,
         {.x = (p.Mkv + kOnePassKeys - 1) / kOnePassKeys * p.Hkv * p.B}, kOnePassThreads,
         one_pass_shared_bytes(sizeof(Element), kWidth, static_cast<bool>(p.bias)), stream, a);
}

template <int kWidth>
void launch_one_pass_of_width(const OnePassArguments& a, void* stream) {
  switch (a.backward.problem.query.dtype) {
    case DType::kFloat16: return launch_one_pass_of<Half, kWidth>(a, stream);
    case DType::kBFloat16: return launch_one_pass_of<BFloat16, kWidth>(a, stream);
    default:
      if constexpr (kWidth * sizeof(float) <= kOnePassRowBytes) {
        launch_one_pass_of<float, kWidth>(a, stream);
      }
  }
}

template <class Element, int kWidth>
void launch_one_pass_bias_of(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const int64_t tiles =
      (p.Mkv + kOnePassKeys - 1) / kOnePassKeys * ((p.Mq + kOnePassQueries - 1) / kOnePassQueries);
  const int64_t heads = (p.grad_bias_sums_h ? 1 : p.Hq) * (p.grad_bias_sums_b ? 1 : p.B);
  launch(&one_pass_bias_kernel<Element, kWidth>, {.x = tiles * heads}, kOnePassThreads,
         one_pass_bias_shared_bytes(kWidth), stream, a);
}

template <int kWidth>
void launch_one_pass_bias_of_width(const BackwardArguments& a, void* stream) {
  if (a.problem.query.dtype == DType::kFloat16) {
    return launch_one_pass_bias_of<Half, kWidth>(a, stream);
  }
  launch_one_pass_bias_of<BFloat16, kWidth>(a, stream);
}

}  // namespace attn::cuda::sm80
