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

// Whether the bias gradient, of every score, leaves no gaps. Axes of one element have stride 0.
bool is_dense(const BackwardProblem& p) {
  const Scores& to = p.grad_bias;
  const auto follows = [](int64_t extent, int64_t stride, int64_t inner) {
    return extent == 1 || stride == inner;
  };
  return follows(p.Mkv, to.stride_n, 1) && follows(p.Mq, to.stride_m, p.Mkv) &&
         follows(p.Hq, to.stride_h, p.Mq * p.Mkv) && follows(p.B, to.stride_b, p.Hq * p.Mq * p.Mkv);
}

}  // namespace

void launch_clear_bias(const BackwardArguments& a, void* stream) {
  const BackwardProblem& p = a.problem;
  const int64_t elements = p.B * p.Hq * p.Mq * p.Mkv;
  if (is_dense(p)) {
    const int64_t bytes = elements * element_bytes(p.grad_bias.dtype);
    return clear_memory(p.grad_bias.data, static_cast<size_t>(bytes), stream);
  }
  launch(&clear_bias_gradient_kernel<kRowGradientThreads>,
         {.x = (elements + kRowGradientThreads - 1) / kRowGradientThreads}, kRowGradientThreads, 0,
         stream, a);
}

void launch_bias_gradient(const BackwardArguments& a, void* stream) {
  if (a.problem.grad_bias_sums_n) return launch_row_bias(a, stream);
  launch_summed(a, stream);
}

}  // namespace attn::cuda::sm80
