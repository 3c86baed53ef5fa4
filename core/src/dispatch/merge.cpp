// Chooses the device and the kernels of a merge.
#include "dispatch/merge.h"

#include "dispatch/cpu_choice.h"
#include "dispatch/cuda.h"
#include "dispatch/useful_workers.h"

namespace attn {
namespace {

constexpr double kLeastElementsPerWorker = 1 << 16;  // to read

TaskRunner runner_for(const MergeProblem& problem, const Resources& resources) {
  const double rows = static_cast<double>(problem.B * problem.M) * static_cast<double>(problem.H);
  const double elements =
      rows * static_cast<double>(problem.Kv) * static_cast<double>(problem.num_chunks);
  return runner_for(resources, elements, kLeastElementsPerWorker);
}

}  // namespace

void merge_forward(const MergeForwardCall& call) {
  if (call.resources.device.is_cuda()) return cuda::merge_forward(call);
  chosen_cpu_kernels(call.problem.dtype)
      .merge_forward(call.problem, runner_for(call.problem, call.resources));
}

void merge_backward(const MergeBackwardCall& call) {
  if (call.resources.device.is_cuda()) return cuda::merge_backward(call);
  chosen_cpu_kernels(call.problem.dtype)
      .merge_backward(call.problem, runner_for(call.problem, call.resources));
}

}  // namespace attn
