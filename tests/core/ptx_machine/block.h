// A block of threads that run a kernel: warps, whose lanes part at branches and meet again.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "global_memory.h"
#include "program.h"
#include "shared_memory.h"

namespace attn::ptx {

constexpr Lanes kAllLanes = ~Lanes{0};

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

class Block;

// A copy from global to shared memory; nothing is read before it lands.
struct Copy {
  uint64_t shared, global;
  uint8_t bytes, present_bytes;
};

// The copies that a lane began.
struct Copies {
  std::vector<std::vector<Copy>> groups;  // committed ones, oldest first
  std::vector<Copy> open;

  bool are_under_way() const {
    return !open.empty() || std::any_of(groups.begin(), groups.end(),
                                        [](const auto& group) { return !group.empty(); });
  }
};

class Warp {
 public:
  Warp(Block& block, int index);

  Warp(const Warp&) = delete;
  Warp& operator=(const Warp&) = delete;

  enum class State { kReady, kAsleep, kAtBlockBarrier, kEnded };
  State state() const { return state_; }

  // Carries out up to so many instructions, fewer where it has to wait.
  void run(int instructions);
  void pass_block_barrier(const KnownBarriers& known);
  // What its lanes know after the next barrier, of the warp or the block.
  KnownBarriers& told() { return told_; }

  // All lanes' values of a register.
  uint64_t* values(int register_index) { return &registers_[size_t{kLanes} * register_index]; }
  Block& block() { return block_; }
  Moment moment(int lane) const;
  // Whether the address is that of a lane's own variables, or of the kernel's parameters.
  bool is_private(uint64_t address) const;
  Copies& copies(int lane) { return copies_[lane]; }

 private:
  // Lanes that are about to carry out the same instruction.
  struct Group {
    int next;
    Lanes lanes;
    bool waits = false;
  };

  void set_registers();
  uint64_t variable(const std::string& name, int lane) const;
  size_t first_group() const;
  void step(size_t group_index);
  bool wait(Group& group);
  void go_on(size_t group_index);
  void branch(size_t group_index, const Instruction& instruction, Lanes taken);
  void end(size_t group_index, Lanes ended);
  void meet(size_t group_index);
  Lanes guarded(const Instruction& instruction, Lanes lanes);

  Block& block_;
  int index_;
  State state_ = State::kReady;
  std::vector<Group> groups_;
  std::vector<uint64_t> registers_;
  std::vector<char> local_;
  std::array<Copies, kLanes> copies_;
  uint32_t block_barriers_ = 0, warp_barriers_ = 0;
  KnownBarriers known_, told_;
};

// What all blocks of a launch have in common.
struct Launch {
  const Program& program;
  Index grid;
  int threads;
  size_t shared_bytes;
  const char* parameters;
};

class Block {
 public:
  Block(const Launch& launch, int number, GlobalMemory& global);

  // Lets one of its warps, chosen by `chance`, go on for a while. False: it has ended.
  bool run_some(uint64_t chance);
  // Whether none of its warps can do more than look again what time it is.
  bool is_asleep() const;

  const Launch& launch() const { return launch_; }
  const Program& program() const { return launch_.program; }
  int number() const { return number_; }
  Index index() const;
  SharedMemory& shared() { return shared_; }
  GlobalMemory& global() { return global_; }

 private:
  void pass_barrier_if_all_wait();
  size_t count(Warp::State state) const;

  const Launch& launch_;
  int number_;
  SharedMemory shared_;
  GlobalMemory& global_;
  std::vector<std::unique_ptr<Warp>> warps_;
};

// What runs, for messages.
struct Place {
  const Block* block = nullptr;
  const Instruction* instruction = nullptr;
};
extern Place place;

template <class T>
T as(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <>
inline bool as<bool>(uint64_t bits) {
  return bits & 1;
}

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

// Calls body(lane) for each of them.
template <class Body>
void for_each(Lanes lanes, const Body& body) {
  for (; lanes != 0; lanes &= lanes - 1) body(std::countr_zero(lanes));
}

}  // namespace attn::ptx
