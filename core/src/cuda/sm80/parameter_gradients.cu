// Queues what finds the gradients of slopes, the table of relative biases, and sinks.
#include "cuda/launch.cuh"
#include "cuda/sm80/backward_instances.h"
#include "cuda/sm80/distance_gradients.cuh"
#include "cuda/sm80/row_gradients.cuh"

namespace attn::cuda::sm80 {
namespace {

DistanceArguments distance_arguments(const BackwardArguments& a, double* sums) {
  const BackwardProblem& p = a.problem;
  const int64_t before = p.band.bottom_right ? p.most_keys : p.most_queries;
  return {.backward = a, .sums = sums, .first = -before, .count = p.most_queries + p.most_keys + 1};
}

}  // namespace

int64_t distance_sums_bytes(const BackwardProblem& p) {
  if (!p.grad_slopes && !p.grad_table) return 0;
  return p.Hq * (p.most_queries + p.most_keys + 1) * static_cast<int64_t>(sizeof(double));
}

void launch_distance_gradients(const BackwardArguments& backward, double* sums, void* stream) {
  const DistanceArguments a = distance_arguments(backward, sums);
  const BackwardProblem& p = backward.problem;
  const int64_t chunks = (a.count + kDistancesOfBlock - 1) / kDistancesOfBlock;
  launch(&distance_sums_kernel<RareShape::kThreads>, {.x = chunks * p.Hq}, RareShape::kThreads,
         DistanceSums::kBytes, stream, a);
  const int64_t warps = p.Hq * ((p.grad_table ? p.grad_table.width : 0) + 1);
  constexpr int64_t kWarps = kRowGradientThreads / kWarpLanes;
  launch(&distance_gradients_kernel<kRowGradientThreads>, {.x = (warps + kWarps - 1) / kWarps},
         kRowGradientThreads, 0, stream, a);
}

void launch_sink_gradient(const BackwardArguments& a, void* stream) {
  launch(&sink_gradient_kernel<kRowGradientThreads>, {.x = a.problem.Hq}, kRowGradientThreads,
         kRowGradientThreads * sizeof(double), stream, a);
}

}  // namespace attn::cuda::sm80
