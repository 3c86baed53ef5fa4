// Queues what finds the gradient of a bias tensor.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/bias_gradient.cuh"
#include "cuda/sm80/row_gradients.cuh"

namespace attn::cuda::sm80 {
namespace {

template <class Element, int kWidth>
void launch_summed(const BackwardArguments& a, void* stream) {
  const BiasBlocks blocks = bias_blocks<Element, kWidth>(a.problem);
  launch(&bias_gradient_kernel<Element, kWidth>,
         {.x = blocks.keys * blocks.queries * blocks.heads * blocks.batch},
         GradientShape<Element, kWidth>::kThreads, TileMemory<Element, kWidth>::kBytes, stream, a);
}

template <class Element>
void launch_summed(const BackwardArguments& a, void* stream) {
  if (a.problem.K <= 64 && a.problem.Kv <= 64) return launch_summed<Element, 64>(a, stream);
  launch_summed<Element, kWidestTile>(a, stream);
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
  launch(&clear_bias_gradient_kernel<kRowGradientThreads>,
         {.x = (p.B * p.Hq * p.Mq * p.Mkv + kRowGradientThreads - 1) / kRowGradientThreads},
         kRowGradientThreads, 0, stream, a);
}

void launch_bias_gradient(const BackwardArguments& a, void* stream) {
  if (a.problem.grad_bias_sums_n) return launch_row_bias(a, stream);
  switch (a.problem.query.dtype) {
    case DType::kFloat16: return launch_summed<Half>(a, stream);
    case DType::kBFloat16: return launch_summed<BFloat16>(a, stream);
    default: return launch_summed<float>(a, stream);
  }
}

}  // namespace attn::cuda::sm80
