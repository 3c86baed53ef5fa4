// The threads of the running block, and what each is waiting for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "fiber.h"
#include "guarded_shared_memory.h"
#include "machine.h"

namespace attn::cuda::emulation {

constexpr size_t kCopyWord = 4;  // copies are of so many bytes or multiples of it

struct Copy {
  char bytes[16];
  size_t size;
  void* target;
};

struct Thread {
  Fiber fiber;
  std::vector<std::vector<Copy>> copies;  // committed groups, oldest first
  std::vector<Copy> open_copies;          // not yet committed
};

using Lanes = uint32_t;  // a bit for each lane of a warp
constexpr Lanes kAllLanes = ~Lanes{0};

struct Warp {
  Lanes joined = 0;  // those that wait in `operation`
  Lanes ended = 0;
  const char* operation = "";
  Place place;
  void* operands[kLanes] = {};
};

class Block {
 public:
  Block(int threads, size_t shared_bytes);

  // Runs all threads to their end.
  void run(Index index, uint64_t seed, void (*kernel)(const void*), const void* context);

  void join_barrier(Place place);
  void join_warp(const char* operation, void* operands, Perform perform, Place place);

  Index index() const { return index_; }
  int running() const { return running_; }
  Thread& thread() { return *threads_[running_]; }
  GuardedSharedMemory& shared() { return shared_; }
  // The words of shared memory that copies are on their way to.
  std::vector<bool>& awaited_words() { return awaited_words_; }
  bool is_below_a_stack(const void* address) const;

 private:
  static void run_thread();
  [[noreturn]] void end_thread();
  void make_ready(int warp);
  void choose_order();
  size_t random_below(size_t end);
  void run_next();
  int take_ready();
  int num_ended() const;
  [[noreturn]] void report_deadlock();

  Index index_;
  int running_ = 0;
  int num_ready_ = 0, at_barrier_ = 0;  // threads
  Place barrier_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::vector<Lanes> ready_;        // of each warp
  std::vector<int> first_to_last_;  // warps
  bool mixes_warps_ = false;        // otherwise the first that can run does
  GuardedSharedMemory shared_;
  std::vector<bool> awaited_words_;
  Fiber host_;
  uint64_t random_ = 0;
  void (*kernel_)(const void*) = nullptr;
  const void* context_ = nullptr;
};

// The block that runs, or null.
extern Block* running_block;

}  // namespace attn::cuda::emulation
