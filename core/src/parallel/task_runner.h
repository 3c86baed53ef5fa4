// Runs the tasks of one call on the caller's executor, the library's pool, or the calling thread.
#pragma once

#include <cstdint>

#include "attn/runtime.h"

namespace attn {

// Plain data, so that kernels compiled for one ISA can use it without emitting shared code.
struct TaskRunner {
  using Body = void (*)(int64_t task, int worker, void* context);

  int workers = 1;  // at most this many bodies run at once; worker is in [0, workers)
  attn_parallel_for parallel_for = nullptr;
  void* executor = nullptr;

  // Calls body for every task in [0, tasks). Tasks start in increasing order, so a body may wait
  // for an earlier task: that one has started, and its worker is running it. Bodies compute with
  // subnormal numbers as 0.
  void run(int64_t tasks, Body body, void* context) const;
};

// Reads `exec` (NULL: defaults) into a runner.
TaskRunner make_task_runner(const attn_exec* exec);

}  // namespace attn
