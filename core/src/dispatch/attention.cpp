// Chooses the device, checks the workspace, runs the kernels.
#include "dispatch/attention.h"

#include "dispatch/cpu_choice.h"
#include "dispatch/cuda.h"
#include "problem/refusal.h"

namespace attn {
namespace {

// Kernels get their workspace at a multiple of this; callers may pass any address.
constexpr size_t kWorkspaceAlignment = 64;

size_t with_room_to_align(size_t bytes) { return bytes == 0 ? 0 : bytes + kWorkspaceAlignment - 1; }

// Returns where the kernels' workspace begins, having checked that `needed` bytes are there.
void* aligned_workspace(const Resources& resources, size_t needed) {
  if (needed == 0) return nullptr;
  if (!resources.workspace) {
    refuse_argument("expected a workspace of %zu bytes, got NULL; ask the workspace query", needed);
  }
  if (resources.workspace_bytes < needed) {
    refuse_argument(
        "expected workspace_bytes >= %zu, got %zu; ask the workspace query with the "
        "same arguments",
        needed, resources.workspace_bytes);
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(resources.workspace);
  return reinterpret_cast<void*>((address + kWorkspaceAlignment - 1) / kWorkspaceAlignment *
                                 kWorkspaceAlignment);
}

// Waking a worker takes microseconds, so each must have this many multiply-adds to do.
constexpr double kLeastWorkPerWorker = 1 << 18;
// What reading an element of a key or value counts for: with few queries that is the work.
constexpr double kWorkPerElement = 4;

// Returns how many workers this problem keeps busy. No result depends on it.
double useful_workers(const Problem& problem) {
  const double keys = static_cast<double>(problem.B) * static_cast<double>(problem.Mkv) *
                      static_cast<double>(problem.K + problem.Kv);
  const double queries = static_cast<double>(problem.Hq) * static_cast<double>(problem.Mq);
  const double work = keys * (queries + kWorkPerElement * static_cast<double>(problem.Hkv));
  return 1 + work / kLeastWorkPerWorker;
}

TaskRunner runner_for(const Problem& problem, const Resources& resources) {
  TaskRunner runner = make_task_runner(&resources.exec);
  if (runner.workers > useful_workers(problem)) {
    runner.workers = static_cast<int>(useful_workers(problem));
  }
  return runner;
}

bool is_on_cuda(const Resources& resources) { return resources.device_type == ATTN_DEVICE_CUDA; }

}  // namespace

size_t forward_workspace(const ForwardCall& call) {
  if (is_on_cuda(call.resources)) return cuda::forward_workspace(call);
  const int workers = runner_for(call.problem, call.resources).workers;
  return with_room_to_align(chosen_cpu_kernels().forward_workspace(call.problem, workers));
}

void forward(const ForwardCall& call) {
  if (is_on_cuda(call.resources)) return cuda::forward(call);
  void* workspace = aligned_workspace(call.resources, forward_workspace(call));
  chosen_cpu_kernels().forward(call.problem, workspace, runner_for(call.problem, call.resources));
}

size_t backward_workspace(const BackwardCall& call) {
  if (is_on_cuda(call.resources)) return cuda::backward_workspace(call);
  const int workers = runner_for(call.problem, call.resources).workers;
  return with_room_to_align(chosen_cpu_kernels().backward_workspace(call.problem, workers));
}

void backward(const BackwardCall& call) {
  if (is_on_cuda(call.resources)) return cuda::backward(call);
  void* workspace = aligned_workspace(call.resources, backward_workspace(call));
  chosen_cpu_kernels().backward(call.problem, workspace, runner_for(call.problem, call.resources));
}

}  // namespace attn
