// Chooses the device and the kernels of a merge.
#include "dispatch/merge.h"

#include "dispatch/cpu_choice.h"
#include "dispatch/cuda.h"

namespace attn {
namespace {

// Waking a worker takes microseconds, so each must have this many elements to read.
constexpr double kLeastWorkPerWorker = 1 << 16;

TaskRunner runner_for(const MergeProblem& problem, const Resources& resources) {
  const double rows = static_cast<double>(problem.B * problem.M) * static_cast<double>(problem.H);
  const double elements =
      rows * static_cast<double>(problem.Kv) * static_cast<double>(problem.num_chunks);
  const double useful_workers = 1 + elements / kLeastWorkPerWorker;
  TaskRunner runner = make_task_runner(&resources.exec);
  if (runner.workers > useful_workers) runner.workers = static_cast<int>(useful_workers);
  return runner;
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
