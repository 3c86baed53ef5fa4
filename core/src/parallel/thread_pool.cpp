// Threads that sleep until a job is posted, start on the first need, and are never joined.
#include "parallel/thread_pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>

namespace attn {
namespace {

using Work = void (*)(int worker, void* context);

// Whether this thread runs some job's work: what it calls then runs serially.
thread_local bool inside_work = false;

// While one lives, its thread takes no signal, and threads that it starts never do: signals belong
// to the program's own threads.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

class ThreadPool {
 public:
  void run(int workers, Work work, void* context);

 private:
  void start_threads(int count);
  void thread_main();
  void help();

  std::mutex one_job_;  // held by the caller whose job is posted
  int num_threads_ = 0;
  std::atomic<uint32_t> jobs_posted_{0};  // what the threads sleep on

  // The posted job. A thread may read it only after it has taken a ticket.
  Work work_ = nullptr;
  void* context_ = nullptr;
  std::atomic<int> tickets_{0};     // workers that have yet to come; the ticket is the worker
  std::atomic<int> unfinished_{0};  // tickets neither returned nor withdrawn
};

void ThreadPool::run(int workers, Work work, void* context) {
  if (inside_work || !one_job_.try_lock()) return work(0, context);
  const std::lock_guard lock(one_job_, std::adopt_lock);
  start_threads(workers - 1);
  work_ = work;
  context_ = context;
  unfinished_.store(workers - 1, std::memory_order_relaxed);
  tickets_.store(workers - 1, std::memory_order_release);
  jobs_posted_.fetch_add(1, std::memory_order_release);
  jobs_posted_.notify_all();

  inside_work = true;
  work(0, context);
  inside_work = false;

  // All work is taken, so whoever is still on the way need not come: no waiting for a wake-up.
  const int withdrawn = tickets_.exchange(0, std::memory_order_relaxed);
  int unfinished = unfinished_.fetch_sub(withdrawn, std::memory_order_acq_rel) - withdrawn;
  while (unfinished != 0) {
    unfinished_.wait(unfinished, std::memory_order_acquire);
    unfinished = unfinished_.load(std::memory_order_acquire);
  }
}

// Where the system refuses more threads, or memory for them, the ones there are take the tickets.
void ThreadPool::start_threads(int count) {
  if (num_threads_ >= count) return;
  const SignalsBlocked signals_blocked;
  try {
    for (; num_threads_ < count; ++num_threads_) std::thread([this] { thread_main(); }).detach();
  } catch (const std::exception&) {
  }
}

void ThreadPool::thread_main() {
  inside_work = true;
  uint32_t seen = 0;
  for (;;) {
    jobs_posted_.wait(seen, std::memory_order_acquire);
    seen = jobs_posted_.load(std::memory_order_acquire);
    help();
  }
}

void ThreadPool::help() {
  int ticket = tickets_.load(std::memory_order_relaxed);
  do {
    if (ticket == 0) return;
  } while (!tickets_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acquire,
                                           std::memory_order_relaxed));
  work_(ticket, context_);
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
}

// Never destroyed: its threads may outlive every static destructor.
std::atomic<ThreadPool*> the_pool{nullptr};

// A forked child has none of the parent's threads, and its locks may be held: start afresh.
void forget_pool() { the_pool.store(nullptr, std::memory_order_relaxed); }

ThreadPool& pool() {
  ThreadPool* current = the_pool.load(std::memory_order_acquire);
  if (current) return *current;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  static_cast<void>(registered);
  auto* created = new ThreadPool;
  if (the_pool.compare_exchange_strong(current, created, std::memory_order_acq_rel)) {
    return *created;
  }
  delete created;
  return *current;
}

}  // namespace

void run_on_pool(int workers, Work work, void* context) {
  if (workers <= 1) return work(0, context);
  pool().run(workers, work, context);
}

}  // namespace attn
