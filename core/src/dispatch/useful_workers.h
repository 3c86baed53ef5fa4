// How many workers a call on the CPU gets.
#pragma once

#include "parallel/task_runner.h"
#include "problem/resources.h"

namespace attn {

// As many as the call allows, and no more than its work keeps busy: one, and another for each
// `least_work` of it, since waking one takes microseconds. No result depends on it.
inline TaskRunner runner_for(const Resources& resources, double work, double least_work) {
  const double useful_workers = 1 + work / least_work;
  TaskRunner runner = make_task_runner(&resources.exec);
  if (runner.workers > useful_workers) runner.workers = static_cast<int>(useful_workers);
  return runner;
}

}  // namespace attn
