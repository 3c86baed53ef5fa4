// Hands out tasks one by one from a shared counter, so that uneven tasks need no planning.
#include "parallel/task_runner.h"

#include <algorithm>
#include <atomic>

#include "parallel/flush_subnormals.h"
#include "parallel/thread_count.h"
#include "parallel/thread_pool.h"

namespace attn {
namespace {

struct TaskLoop {
  int64_t tasks;
  TaskRunner::Body body;
  void* context;
  std::atomic<int64_t> next{0};

  // Runs tasks until none is left.
  void work(int worker) {
    const FlushSubnormals flush;
    for (;;) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      body(task, worker, context);
    }
  }
};

// One item is one worker: an executor may run several on one thread, then the first does it all.
void work_for_executor(int64_t begin, int64_t end, void* context) {
  for (int64_t worker = begin; worker < end; ++worker) {
    static_cast<TaskLoop*>(context)->work(static_cast<int>(worker));
  }
}

void work_for_pool(int worker, void* context) { static_cast<TaskLoop*>(context)->work(worker); }

}  // namespace

void TaskRunner::run(int64_t tasks, Body body, void* context) const {
  TaskLoop loop{.tasks = tasks, .body = body, .context = context};
  const int used = static_cast<int>(std::min<int64_t>(workers, tasks));
  if (used <= 1) {
    loop.work(0);
  } else if (parallel_for) {
    parallel_for(0, used, 1, work_for_executor, &loop, executor);
  } else {
    run_on_pool(used, work_for_pool, &loop);
  }
}

TaskRunner make_task_runner(const attn_exec* exec) {
  if (!exec) return {.workers = default_num_threads()};
  const int wanted = exec->num_threads > 0 ? exec->num_threads : default_num_threads();
  return {.workers = std::min(wanted, kMostThreads),
          .parallel_for = exec->parallel_for,
          .executor = exec->executor};
}

}  // namespace attn
