// Runs the tasks of a call by functions of any type, each with the scratch of its worker.
#pragma once

#include <cstdint>

#include "cpu/kernels/scratch-inl.h"
#include "parallel/task_runner.h"

namespace attn::cpu {
namespace {

// Calls f(task, worker) for every task.
template <class F>
void run_tasks(const TaskRunner& runner, int64_t tasks, F f) {
  runner.run(
      tasks, [](int64_t task, int worker, void* f) { (*static_cast<F*>(f))(task, worker); }, &f);
}

// Calls f(task, scratch) for every task, where the scratch is a T of these arguments. `memory` has
// scratch_bytes_of<T>(arguments...) for each busy worker.
template <class T, class F, class... Arguments>
void run_with_scratch(const TaskRunner& runner, int64_t tasks, void* memory, F&& f,
                      const Arguments&... arguments) {
  const int64_t bytes = scratch_bytes_of<T>(arguments...);
  run_tasks(runner, tasks, [&](int64_t task, int worker) {
    Scratch of_worker(static_cast<char*>(memory) + worker * bytes);
    T scratch(of_worker, arguments...);
    f(task, scratch);
  });
}

}  // namespace
}  // namespace attn::cpu
