// Switches between the threads of a block wherever they wait for each other.
#include "block.h"

#include <bit>
#include <cstring>
#include <utility>

namespace attn::cuda::emulation {

Block* running_block = nullptr;

Block::Block(int threads, size_t shared_bytes)
    : warps_(threads / kLanes),
      ready_(threads / kLanes),
      shared_(shared_bytes),
      awaited_words_(shared_bytes / kCopyWord) {
  for (int i = 0; i < threads; ++i) threads_.push_back(std::make_unique<Thread>());
  for (int i = 0; i < threads / kLanes; ++i) first_to_last_.push_back(i);
}

void Block::run(Index index, uint64_t seed, void (*kernel)(const void*), const void* context) {
  index_ = index;
  kernel_ = kernel;
  context_ = context;
  at_barrier_ = 0;
  random_ = seed;
  choose_order();
  shared_.poison();
  for (const auto& thread : threads_) thread->fiber.start(&Block::run_thread);
  for (int warp = 0; warp < static_cast<int>(warps_.size()); ++warp) {
    warps_[warp].ended = 0;
    make_ready(warp);
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
  warps_[running_ / kLanes].ended |= Lanes{1} << running_ % kLanes;
  run_next();
  __builtin_unreachable();
}

void Block::make_ready(int warp) {
  ready_[warp] = kAllLanes;
  num_ready_ += kLanes;
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
  while (!ready_[first_to_last_[place]]) place = place + 1 < warps ? place + 1 : 0;
  const int warp = first_to_last_[place];
  // Any lane, or the next one that is ready.
  const int first = static_cast<int>(random_below(kLanes));
  const int lane = (first + std::countr_zero(std::rotr(ready_[warp], first))) % kLanes;
  ready_[warp] &= ~(Lanes{1} << lane);
  --num_ready_;
  return warp * kLanes + lane;
}

int Block::num_ended() const {
  int ended = 0;
  for (const Warp& warp : warps_) ended += std::popcount(warp.ended);
  return ended;
}

void Block::run_next() {
  Fiber& left = thread().fiber;
  if (num_ready_ == 0) {
    if (num_ended() < static_cast<int>(threads_.size())) report_deadlock();
    Fiber::change(left, host_);
    return;
  }
  const int next = take_ready();
  if (next == running_) return;
  running_ = next;
  Fiber::change(left, threads_[next]->fiber);
}

void Block::join_barrier(Place place) {
  if (at_barrier_ == 0) barrier_ = place;
  if (place.line() != barrier_.line()) {
    fail("threads wait at different barriers, %s:%u and %s:%u", place.file_name(), place.line(),
         barrier_.file_name(), barrier_.line());
  }
  if (++at_barrier_ == static_cast<int>(threads_.size())) {
    at_barrier_ = 0;
    for (int warp = 0; warp < static_cast<int>(warps_.size()); ++warp) make_ready(warp);
    choose_order();
  }
  run_next();
}

void Block::join_warp(const char* operation, void* operands, Perform perform, Place place) {
  Warp& warp = warps_[running_ / kLanes];
  if (warp.joined == 0) {
    warp.operation = operation;
    warp.place = place;
  }
  const bool is_same = operation == warp.operation || std::strcmp(operation, warp.operation) == 0;
  if (!is_same || place.line() != warp.place.line()) {
    fail("lanes of a warp join different operations: %s at %s:%u, and %s at %s:%u", operation,
         place.file_name(), place.line(), warp.operation, warp.place.file_name(),
         warp.place.line());
  }
  warp.operands[running_ % kLanes] = operands;
  warp.joined |= Lanes{1} << running_ % kLanes;
  if (warp.joined == kAllLanes) {
    warp.joined = 0;
    make_ready(running_ / kLanes);
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
    const Warp& warp = warps_[i / kLanes];
    const Lanes lane = Lanes{1} << i % kLanes;
    if (warp.ended & lane) continue;
    const bool is_in_warp = warp.joined & lane;
    const Place& place = is_in_warp ? warp.place : barrier_;
    fail("thread %d waits in %s at %s:%u for threads that never come: %d of %zu have ended", i,
         is_in_warp ? warp.operation : "synchronise_block", place.file_name(), place.line(),
         num_ended(), threads_.size());
  }
  __builtin_unreachable();
}

}  // namespace attn::cuda::emulation
