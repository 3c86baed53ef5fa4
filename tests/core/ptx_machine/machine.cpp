// The order in which blocks run, and how the machine stops.
#include "machine.h"

#include <signal.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>

#include "../emulated_device.h"
#include "fail.h"

namespace attn::ptx {
namespace {

constexpr size_t kResidentBlocks = 4;  // that run at a time
constexpr int kMostIdleTurns = 10000;  // in which no block could do anything but sleep

void report_fault(int signal_number, siginfo_t* information, void*) {
  signal(signal_number, SIG_DFL);
  if (place.block) fail("access to memory that is not there, at %p", information->si_addr);
}

void catch_faults() {
  struct sigaction action{};
  action.sa_sigaction = &report_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (place.block) {
    const Index index = place.block->index();
    std::fprintf(stderr, "\n  in block (%u, %u, %u) of %s", index.x, index.y, index.z,
                 place.block->program().name.c_str());
  }
  if (place.instruction) std::fprintf(stderr, "\n  at %s", place.instruction->text.c_str());
  std::fprintf(stderr, "\n");
  std::_Exit(1);
}

void run_grid(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  catch_faults();
  std::mt19937_64 chance(gpu::next_seed());
  std::vector<int> waiting(size_t{launch.grid.x} * launch.grid.y * launch.grid.z);
  std::iota(waiting.begin(), waiting.end(), 0);
  std::shuffle(waiting.begin(), waiting.end(), chance);
  GlobalMemory global(waiting.size());
  std::vector<std::unique_ptr<Block>> resident;
  int idle_turns = 0;
  while (!waiting.empty() || !resident.empty()) {
    while (!waiting.empty() && resident.size() < kResidentBlocks) {
      resident.push_back(std::make_unique<Block>(launch, waiting.back(), global));
      waiting.pop_back();
    }
    const size_t chosen = chance() % resident.size();
    if (!resident[chosen]->run_some(chance())) {
      resident.erase(resident.begin() + static_cast<ptrdiff_t>(chosen));
    }
    const bool is_idle = std::all_of(resident.begin(), resident.end(),
                                     [](const auto& block) { return block->is_asleep(); });
    idle_turns = is_idle && !resident.empty() ? idle_turns + 1 : 0;
    if (idle_turns > kMostIdleTurns) fail("all blocks sleep and wait for something");
  }
  place = {};
}

}  // namespace attn::ptx
