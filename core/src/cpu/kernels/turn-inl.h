// Turns at a sum that tasks share: added to in one order, it is the same for any number of threads.
#pragma once

#include <sched.h>

#include <cstdint>

namespace attn::cpu {
namespace {

struct Turn {
  int64_t now;

  // Ends: tasks start in order, so all whose turns come before have started.
  void wait_for(int64_t turn) const {
    while (__atomic_load_n(&now, __ATOMIC_ACQUIRE) != turn) sched_yield();
  }
  void end(int64_t turn) { __atomic_store_n(&now, turn + 1, __ATOMIC_RELEASE); }
};

}  // namespace
}  // namespace attn::cpu
