// The callback through which the core uses torch's thread pool.
#include "executor.h"

#include <torch/csrc/stable/ops.h>

namespace attn_torch {
namespace {

void parallel_for(int64_t begin, int64_t end, int64_t grain, attn_task task, void* context,
                  void* /*executor*/) {
  // Torch reports failure only if a task throws, and the core's never do.
  (void)torch_parallel_for(begin, end, grain, task, context);
}

}  // namespace

attn_exec torch_executor() {
  attn_exec exec = ATTN_EXEC_INIT;
  exec.num_threads = static_cast<int32_t>(torch::stable::get_num_threads());
  exec.parallel_for = parallel_for;
  return exec;
}

}  // namespace attn_torch
