// Every task runs once, in order of start, whoever provides the threads and however they nest, and
// computes with subnormal numbers as 0.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "failing_memory.h"
#include "parallel/task_runner.h"

namespace {

using attn::TaskRunner;

// Counts the runs of each task, and whether two bodies ever shared a worker.
struct Tally {
  explicit Tally(int64_t tasks, int workers) : runs(tasks), is_busy(workers) {}

  std::vector<std::atomic<int>> runs;
  std::vector<std::atomic<bool>> is_busy;
  std::atomic<bool> workers_were_shared{false};

  static void body(int64_t task, int worker, void* context) {
    auto* tally = static_cast<Tally*>(context);
    if (tally->is_busy[worker].exchange(true)) tally->workers_were_shared = true;
    tally->runs[task].fetch_add(1);
    tally->is_busy[worker] = false;
  }
};

void check_each_task_once(const char* context, const TaskRunner& runner, int64_t tasks) {
  Tally tally(tasks, runner.workers);
  runner.run(tasks, Tally::body, &tally);
  bool once = true;
  for (const std::atomic<int>& count : tally.runs) once &= count == 1;
  CHECK_IN(context, once);
  CHECK_IN(context, !tally.workers_were_shared);
}

TaskRunner pool_runner(int threads) {
  attn_exec exec = ATTN_EXEC_INIT;
  exec.num_threads = threads;
  return attn::make_task_runner(&exec);
}

TaskRunner executor_runner(int threads, attn_parallel_for parallel_for) {
  attn_exec exec = ATTN_EXEC_INIT;
  exec.num_threads = threads;
  exec.parallel_for = parallel_for;
  return attn::make_task_runner(&exec);
}

void in_one_chunk(int64_t begin, int64_t end, int64_t, attn_task task, void* context, void*) {
  task(begin, end, context);
}

void one_by_one_from_the_last(int64_t begin, int64_t end, int64_t, attn_task task, void* context,
                              void*) {
  for (int64_t item = end; item-- > begin;) task(item, item + 1, context);
}

void on_a_thread_each(int64_t begin, int64_t end, int64_t, attn_task task, void* context, void*) {
  std::vector<std::thread> threads;
  for (int64_t item = begin; item < end; ++item) {
    threads.emplace_back([=] { task(item, item + 1, context); });
  }
  for (std::thread& thread : threads) thread.join();
}

void test_defaults() {
  CHECK(attn::make_task_runner(nullptr).workers >= 1);
  CHECK(pool_runner(0).workers == attn::make_task_runner(nullptr).workers);
  CHECK(pool_runner(3).workers == 3);
  CHECK(pool_runner(1 << 30).workers <= 1024);
}

void test_numbers_of_tasks_and_threads() {
  for (const int threads : {1, 2, 3, 7}) {
    for (const int64_t tasks : {0, 1, 2, 5, 1000}) {
      check_each_task_once("pool", pool_runner(threads), tasks);
      check_each_task_once("one chunk", executor_runner(threads, in_one_chunk), tasks);
      check_each_task_once("backwards", executor_runner(threads, one_by_one_from_the_last), tasks);
      check_each_task_once("threads", executor_runner(threads, on_a_thread_each), tasks);
    }
  }
}

// A body may wait for the task before it; this would hang if tasks started out of order.
void test_tasks_start_in_order() {
  constexpr int64_t kTasks = 200;
  for (const TaskRunner& runner : {pool_runner(4), executor_runner(4, on_a_thread_each),
                                   executor_runner(4, one_by_one_from_the_last)}) {
    std::atomic<int64_t> finished{0};
    const auto body = [](int64_t task, int, void* context) {
      auto* count = static_cast<std::atomic<int64_t>*>(context);
      while (count->load() < task) std::this_thread::yield();
      count->fetch_add(1);
    };
    runner.run(kTasks, body, &finished);
    CHECK(finished == kTasks);
  }
}

void test_nested_calls() {
  std::atomic<int> inner_tasks{0};
  const auto inner = [](int64_t, int, void* context) {
    static_cast<std::atomic<int>*>(context)->fetch_add(1);
  };
  struct Outer {
    TaskRunner::Body inner;
    std::atomic<int>* count;
  } outer{inner, &inner_tasks};
  const auto body = [](int64_t, int, void* context) {
    auto* o = static_cast<Outer*>(context);
    pool_runner(4).run(10, o->inner, o->count);
  };
  pool_runner(4).run(20, body, &outer);
  CHECK(inner_tasks == 200);
}

void test_many_callers() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([] {
      for (int round = 0; round < 200; ++round) {
        check_each_task_once("many callers", pool_runner(3), 17);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// The child has none of the parent's threads, and must get its own.
void test_fork() {
  check_each_task_once("before the fork", pool_runner(3), 100);
  const pid_t child = fork();
  if (child == 0) {
    const int before = check::failures;
    check_each_task_once("in the child", pool_runner(3), 100);
    _exit(check::failures == before ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  check_each_task_once("after the fork", pool_runner(3), 100);
}

// Without memory for more threads the work is done all the same, and signals reach the caller.
void test_no_memory_for_threads() {
  const TaskRunner runner = pool_runner(20);  // more than any test before asked for
  Tally tally(100, runner.workers);
  {
    const NoMemory no_memory;
    runner.run(100, Tally::body, &tally);
  }
  for (const std::atomic<int>& count : tally.runs) CHECK(count == 1);
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  CHECK(sigismember(&blocked, SIGINT) == 0);
}

void test_subnormals() {
  const auto multiply = [](int64_t task, int, void* products) {
    volatile float small = 1e-20f;
    static_cast<float*>(products)[task] = small * small;
  };
  for (const TaskRunner& runner : {pool_runner(1), pool_runner(3), executor_runner(2, in_one_chunk),
                                   executor_runner(2, on_a_thread_each)}) {
    std::vector<float> products(20, 1);
    runner.run(20, multiply, products.data());
    for (const float product : products) CHECK(product == 0);
    float product = 0;
    multiply(0, 0, &product);
    CHECK(product > 0);  // the caller's own arithmetic is as before
  }
}

}  // namespace

int main() {
  test_defaults();
  test_numbers_of_tasks_and_threads();
  test_tasks_start_in_order();
  test_nested_calls();
  test_many_callers();
  test_fork();
  test_no_memory_for_threads();
  test_subnormals();
  return check::outcome();
}
