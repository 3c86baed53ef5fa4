// Reads the environment and the affinity mask.
#include "parallel/thread_count.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

namespace attn {
namespace {

// 0 if the environment does not name a usable number.
int num_threads_from_environment() {
  const char* text = std::getenv("ATTN_NUM_THREADS");
  if (!text) return 0;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  return *text && !*end && number >= 1 && number <= kMostThreads ? static_cast<int>(number) : 0;
}

int num_cpus_allowed() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
  return static_cast<int>(std::thread::hardware_concurrency());  // more CPUs than cpu_set_t holds
}

}  // namespace

int default_num_threads() {
  static const int count = [] {
    const int named = num_threads_from_environment();
    return named > 0 ? named : std::clamp(num_cpus_allowed(), 1, kMostThreads);
  }();
  return count;
}

}  // namespace attn
