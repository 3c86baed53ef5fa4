// Kernels with one fault each, and what tells whether it was found.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "cuda/device/copy.cuh"
#include "cuda/device/shuffle.cuh"
#include "cuda/device/turns.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/launch.cuh"

namespace faulty {

using namespace attn::cuda;

constexpr int kThreads = 128;

struct Output {
  float* values;
};
struct Copied {
  const float* source;
  float* values;
};
struct TurnArguments {
  int32_t* tickets;
  int32_t* now;
  float* numbers;
};

ATTN_KERNEL void no_barrier(ATTN_ARGUMENTS const Output out) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  shared[thread_index()] = 1.0f;
  synchronise_warp();
  out.values[block_index().x * kThreads + thread_index()] =
      shared[(thread_index() + 32) % kThreads];
}
ATTN_KERNEL void no_wait(ATTN_ARGUMENTS const Copied p) {
  float* shared = reinterpret_cast<float*>(shared_memory()) + 4 * thread_index();
  copy_async<16>(shared, p.source, true);
  commit_copies();
  p.values[thread_index()] = *shared;
  wait_for_copies<0>();
}
ATTN_KERNEL void beyond_shared(ATTN_ARGUMENTS const Output) {
  reinterpret_cast<volatile float*>(shared_memory())[kThreads] = 1.0f;
}
ATTN_KERNEL void lane_stays_away(ATTN_ARGUMENTS const Output out) {
  if (thread_index() != 5) out.values[thread_index()] = shuffle(1.0f, 0);
}
ATTN_KERNEL void different_barriers(ATTN_ARGUMENTS const Output) {
  if (thread_index() < 32) {
    synchronise_block();
  } else {
    synchronise_block();
  }
}
ATTN_KERNEL void copy_left_behind(ATTN_ARGUMENTS const Copied p) {
  copy_async<16>(shared_memory() + 16 * thread_index(), p.source, true);
}
ATTN_KERNEL void turn_that_never_comes(ATTN_ARGUMENTS const TurnArguments p) {
  wait_for_turn(p.now, 1);
}
ATTN_KERNEL void two_copies_to_one_place(ATTN_ARGUMENTS const Copied p) {
  char* const target = shared_memory() + 16 * thread_index();
  copy_async<16>(target, p.source, true);
  copy_async<16>(target, p.source, true);
}
ATTN_KERNEL void misaligned_copy(ATTN_ARGUMENTS const Copied p) {
  copy_async<16>(shared_memory() + 8, p.source, true);
}

// Faults that only show while several blocks or lanes run at a time.
ATTN_KERNEL void no_warp_barrier(ATTN_ARGUMENTS const Output out) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  shared[thread_index()] = out.values[thread_index()];
  out.values[thread_index()] = shared[thread_index() ^ 1];
}
ATTN_KERNEL void blocks_share_a_place(ATTN_ARGUMENTS const Output out) {
  out.values[thread_index()] = static_cast<float>(block_index().x);
}
// Each block adds to the numbers in its turn, but the turn passes before all threads have.
ATTN_KERNEL void turn_passed_too_soon(ATTN_ARGUMENTS const TurnArguments p) {
  int& ticket = *reinterpret_cast<int*>(shared_memory());
  if (thread_index() == 0) ticket = take_ticket(p.tickets);
  synchronise_block();
  if (lane() == 0) wait_for_turn(p.now, ticket);
  synchronise_warp();
  p.numbers[thread_index()] += 1.0f;
  if (thread_index() == 0) pass_turn(p.now, ticket);
}

// Whether running it stops the process with a message that holds `expected`.
template <class Run>
bool stops(const char* expected, Run run) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    run();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  for (char c; read(ends[0], &c, 1) == 1;) text += c;
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 1 && text.find(expected) != text.npos;
}

}  // namespace faulty
