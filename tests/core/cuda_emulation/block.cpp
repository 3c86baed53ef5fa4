// Switches between the threads of a block wherever they wait for each other.
#include "block.h"

#include <algorithm>
#include <cstring>

namespace attn::cuda::emulation {

Block* running_block = nullptr;

Block::Block(int threads, size_t shared_bytes)
    : warps_(threads / kLanes), shared_(shared_bytes), awaited_words_(shared_bytes / kCopyWord) {
  for (int i = 0; i < threads; ++i) threads_.push_back(std::make_unique<Thread>());
  for (int i = 0; i < threads / kLanes; ++i) first_to_last_.push_back(i);
}

void Block::run(Index index, uint64_t seed, void (*kernel)(const void*), const void* context) {
  index_ = index;
  kernel_ = kernel;
  context_ = context;
  at_barrier_ = done_ = 0;
  random_ = seed;
  choose_order();
  shared_.poison();
  for (int i = 0; i < static_cast<int>(threads_.size()); ++i) {
    threads_[i]->fiber.start(&Block::run_thread);
    make_ready(i);
  }
  running_block = this;
  running_ = take_ready();
  Fiber::change(host_, thread().fiber);
  if (!shared_.is_slack_untouched()) fail("a thread wrote beside its block's shared memory");
  running_block = nullptr;
}

void Block::run_thread() {
  Block& block = *running_block;
  block.kernel_(block.context_);
  block.end_thread();
}

void Block::end_thread() {
  if (!thread().copies.empty() || !thread().open_copies.empty()) {
    fail("a thread ended with asynchronous copies that it had not waited for");
  }
  thread().state = Thread::State::kDone;
  ++done_;
  run_next();
  __builtin_unreachable();
}

void Block::make_ready(int thread) {
  threads_[thread]->state = Thread::State::kReady;
  warps_[thread / kLanes].ready.push_back(thread);
  ++ready_;
}

// Mostly one warp runs as far as it gets, then another: what a barrier should have kept apart is
// then as far apart as can be.
void Block::choose_order() {
  mixes_warps_ = random_below(4) == 0;
  for (size_t left = first_to_last_.size(); left > 1; --left) {
    std::swap(first_to_last_[left - 1], first_to_last_[random_below(left)]);
  }
}

// Knuth's linear congruential generator, of whose bits the high ones are good.
size_t Block::random_below(size_t end) {
  random_ = random_ * 6364136223846793005 + 1442695040888963407;
  return (random_ >> 32) * end >> 32;
}

int Block::take_ready() {
  const size_t warps = first_to_last_.size();
  size_t place = mixes_warps_ ? random_below(warps) : 0;
  while (warps_[first_to_last_[place]].ready.empty()) place = place + 1 < warps ? place + 1 : 0;
  std::vector<int>& ready = warps_[first_to_last_[place]].ready;
  std::swap(ready[random_below(ready.size())], ready.back());
  const int thread = ready.back();
  ready.pop_back();
  --ready_;
  return thread;
}

void Block::run_next() {
  Fiber& left = thread().fiber;
  if (ready_ == 0) {
    if (done_ < static_cast<int>(threads_.size())) report_deadlock();
    Fiber::change(left, host_);
    return;
  }
  const int next = take_ready();
  if (next == running_) return;
  running_ = next;
  Fiber::change(left, threads_[next]->fiber);
}

void Block::wait(Thread::State state, const char* operation, Place place) {
  thread().state = state;
  thread().operation = operation;
  thread().place = place;
}

void Block::join_barrier(Place place) {
  wait(Thread::State::kAtBarrier, "synchronise_block", place);
  if (++at_barrier_ == static_cast<int>(threads_.size())) {
    at_barrier_ = 0;
    for (int i = 0; i < static_cast<int>(threads_.size()); ++i) {
      if (threads_[i]->place.line() != place.line()) {
        fail("threads %d and %d wait at different barriers, %s:%u and %s:%u", running_, i,
             place.file_name(), place.line(), threads_[i]->place.file_name(),
             threads_[i]->place.line());
      }
      make_ready(i);
    }
    choose_order();
  }
  run_next();
}

void Block::join_warp(const char* operation, void* operands, Perform perform, Place place) {
  Warp& warp = warps_[running_ / kLanes];
  wait(Thread::State::kInWarp, operation, place);
  warp.operands[running_ % kLanes] = operands;
  if (++warp.arrived == kLanes) {
    warp.arrived = 0;
    const int first = running_ / kLanes * kLanes;
    for (int i = first; i < first + kLanes; ++i) {
      const Thread& other = *threads_[i];
      const bool is_same =
          other.operation == operation || std::strcmp(other.operation, operation) == 0;
      if (!is_same || other.place.line() != place.line()) {
        fail("lanes of a warp join different operations: %s at %s:%u, and thread %d %s at %s:%u",
             operation, place.file_name(), place.line(), i, other.operation,
             other.place.file_name(), other.place.line());
      }
      make_ready(i);
    }
    if (perform) perform(warp.operands);
  }
  run_next();
}

bool Block::is_below_a_stack(const void* address) const {
  for (const auto& thread : threads_) {
    if (thread->fiber.is_below_stack(address)) return true;
  }
  return false;
}

void Block::report_deadlock() {
  for (int i = 0; i < static_cast<int>(threads_.size()); ++i) {
    const Thread& thread = *threads_[i];
    if (thread.state == Thread::State::kDone) continue;
    fail("thread %d waits in %s at %s:%u for threads that never come: %d of %zu have ended", i,
         thread.operation, thread.place.file_name(), thread.place.line(), done_, threads_.size());
  }
  __builtin_unreachable();
}

}  // namespace attn::cuda::emulation
