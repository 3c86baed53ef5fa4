// Chooses the kernels of a linear layer, and how many threads are worth waking.
#include "dispatch/linear.h"

#include "dispatch/cpu_choice.h"
#include "dispatch/useful_workers.h"
#include "dispatch/workspace.h"

namespace attn {
namespace {

// What each has to read of the weight.
constexpr double kLeastElementsPerWorker = 1 << 16;

TaskRunner runner_for(const LinearCall& call) {
  const LinearProblem& problem = call.problem;
  const double elements = static_cast<double>(problem.E) * static_cast<double>(problem.F);
  return runner_for(call.resources, elements, kLeastElementsPerWorker);
}

}  // namespace

size_t linear_workspace(const LinearCall& call) {
  const int workers = runner_for(call).workers;
  return with_room_to_align(
      chosen_cpu_kernels(call.problem.dtype).linear_workspace(call.problem, workers));
}

void linear(const LinearCall& call) {
  void* workspace = aligned_workspace(call.resources, linear_workspace(call));
  chosen_cpu_kernels(call.problem.dtype).linear(call.problem, workspace, runner_for(call));
}

}  // namespace attn
