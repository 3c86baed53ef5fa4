// Chooses the device, checks the workspace, runs the kernels.
#include "dispatch/attention.h"

#include "dispatch/cpu_choice.h"
#include "dispatch/cuda.h"
#include "dispatch/useful_workers.h"
#include "dispatch/workspace.h"

namespace attn {
namespace {

constexpr double kLeastWorkPerWorker = 1 << 18;  // multiply-adds
// What reading an element of a key or value counts for: with few queries that is the work.
constexpr double kWorkPerElement = 4;

TaskRunner runner_for(const Problem& problem, const Resources& resources) {
  const double keys = static_cast<double>(problem.B) * static_cast<double>(problem.Mkv) *
                      static_cast<double>(problem.K + problem.Kv);
  const double queries = static_cast<double>(problem.Hq) * static_cast<double>(problem.Mq);
  const double work = keys * (queries + kWorkPerElement * static_cast<double>(problem.Hkv));
  return runner_for(resources, work, kLeastWorkPerWorker);
}

}  // namespace

size_t forward_workspace(const ForwardCall& call) {
  if (call.resources.device.is_cuda()) return cuda::forward_workspace(call);
  const int workers = runner_for(call.problem, call.resources).workers;
  return with_room_to_align(
      chosen_cpu_kernels(call.problem.query.dtype).forward_workspace(call.problem, workers));
}

void forward(const ForwardCall& call) {
  if (call.resources.device.is_cuda()) return cuda::forward(call);
  void* workspace = aligned_workspace(call.resources, forward_workspace(call));
  chosen_cpu_kernels(call.problem.query.dtype)
      .forward(call.problem, workspace, runner_for(call.problem, call.resources));
}

size_t backward_workspace(const BackwardCall& call) {
  if (call.resources.device.is_cuda()) return cuda::backward_workspace(call);
  const int workers = runner_for(call.problem, call.resources).workers;
  return with_room_to_align(
      chosen_cpu_kernels(call.problem.query.dtype).backward_workspace(call.problem, workers));
}

void backward(const BackwardCall& call) {
  if (call.resources.device.is_cuda()) return cuda::backward(call);
  void* workspace = aligned_workspace(call.resources, backward_workspace(call));
  chosen_cpu_kernels(call.problem.query.dtype)
      .backward(call.problem, workspace, runner_for(call.problem, call.resources));
}

}  // namespace attn
