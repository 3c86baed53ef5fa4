// Queues what finds the gradient of a bias tensor.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/bias_gradient.cuh"
#include "cuda/sm80/row_gradients.cuh"

namespace attn::cuda::sm80 {
namespace {

void launch_summed(const BackwardArguments& a, void* stream) {
  const BiasBlocks blocks = bias_blocks(a.problem);
  launch(&bias_gradient_kernel<RareShape::kThreads>,
         {.x = blocks.keys * blocks.queries * blocks.heads * blocks.batch}, RareShape::kThreads,
         RareMemory::kBytes, stream, a);
}

// Of a bias that is the same for all keys.
void launch_row_bias(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const int64_t elements = (p.grad_bias_sums_b ? 1 : p.B) * (p.grad_bias_sums_h ? 1 : p.Hq) *
                           (p.grad_bias_sums_m ? 1 : p.Mq);
  launch(&row_bias_gradient_kernel<kRowGradientThreads>, {.x = elements}, kRowGradientThreads,
         kRowGradientThreads * sizeof(double), stream, a);
}

}  // namespace

void launch_clear_bias(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const Scores& to = p.grad_bias;
  if (to.stride_n == 1 && to.stride_m == p.Mkv && to.stride_h == p.Mq * p.Mkv &&
      to.stride_b == p.Hq * to.stride_h) {
    const int64_t bytes = p.B * to.stride_b * element_bytes(to.dtype);
    return clear_memory(to.data, static_cast<size_t>(bytes), stream);
  }
  launch(&clear_bias_gradient_kernel<kRowGradientThreads>,
         {.x = (p.B * p.Hq * p.Mq * p.Mkv + kRowGradientThreads - 1) / kRowGradientThreads},
         kRowGradientThreads, 0, stream, a);
}

void launch_bias_gradient(const BackwardArguments& a, void* stream) {
  if (a.problem.grad_bias_sums_n) return launch_row_bias(a, stream);
  launch_summed(a, stream);
}

}  // namespace attn::cuda::sm80
