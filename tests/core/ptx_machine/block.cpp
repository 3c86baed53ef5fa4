// How lanes part and meet, and warps wait for each other.
#include "block.h"

#include <algorithm>

#include "fail.h"

namespace attn::ptx {

Place place;

Warp::Warp(Block& block, int index)
    : block_(block),
      index_(index),
      groups_{{.next = 0, .lanes = kAllLanes}},
      registers_(size_t{kLanes} * block.program().num_registers, ~uint64_t{0}),
      local_(kLanes * block.program().local_bytes, '\xFF') {
  set_registers();
}

void Warp::set_registers() {
  for (const auto& [index, value] : block_.program().constants) {
    std::fill_n(values(index), kLanes, value);
  }
  for (const auto& [name, index] : block_.program().variables) {
    for (int lane = 0; lane < kLanes; ++lane) values(index)[lane] = variable(name, lane);
  }
}

// What a variable holds, or where it lies.
uint64_t Warp::variable(const std::string& name, int lane) const {
  const Index index = block_.index();
  if (name == "%tid.x") return kLanes * index_ + lane;
  if (name == "%ctaid.x") return index.x;
  if (name == "%ctaid.y") return index.y;
  if (name == "%ctaid.z") return index.z;
  if (name.starts_with("__local_depot")) {
    return bits_of(local_.data() + lane * block_.program().local_bytes);
  }
  if (name.ends_with("_param_0")) return bits_of(block_.launch().parameters);
  if (name.ends_with("shared_memoryE")) return SharedMemory::kBegin;
  fail("PTX: expected a variable that the machine has, got %s", name.c_str());
}

Moment Warp::moment(int lane) const {
  return {.block = block_.number(),
          .thread = kLanes * index_ + lane,
          .block_barriers = block_barriers_,
          .warp_barriers = warp_barriers_,
          .known_barriers = known_.empty() ? nullptr : &known_};
}

bool Warp::is_private(uint64_t address) const {
  const auto is_in = [&](const char* begin, size_t bytes) {
    return address - bits_of(begin) < bytes;
  };
  return is_in(local_.data(), local_.size()) ||
         is_in(block_.launch().parameters, block_.program().parameter_bytes);
}

Lanes Warp::guarded(const Instruction& instruction, Lanes lanes) {
  if (instruction.guard < 0) return lanes;
  const uint64_t* holds = values(instruction.guard);
  Lanes those = 0;
  for_each(lanes, [&](int lane) {
    those |= Lanes{(holds[lane] & 1) != instruction.guard_is_negated} << lane;
  });
  return those;
}

// The group that is behind the others, of those that need not wait for them.
size_t Warp::first_group() const {
  size_t first = groups_.size();
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (!groups_[i].waits && (first == groups_.size() || groups_[i].next < groups_[first].next)) {
      first = i;
    }
  }
  return first;
}

void Warp::run(int instructions) {
  // Once awake, it gets to where it sleeps again if there is nothing else to do.
  constexpr int kLoop = 64;
  if (state_ == State::kAsleep) instructions = std::max(instructions, kLoop);
  state_ = State::kReady;
  while (instructions-- > 0 && state_ == State::kReady) {
    const size_t group = first_group();
    if (group == groups_.size()) {
      place.instruction = &block_.program().instructions[groups_[0].next];
      fail("lanes of warp %d wait here for others that never come", index_);
    }
    step(group);
  }
}

// At what all lanes have to join. Whether some are missing; those that are there wait.
bool Warp::wait(Group& group) {
  group.waits = groups_.size() > 1 || group.lanes != kAllLanes;
  return group.waits;
}

void Warp::step(size_t group_index) {
  Group& group = groups_[group_index];
  const Instruction& instruction = block_.program().instructions[group.next];
  const Operation& operation = instruction.operation;
  place = {.block = &block_, .instruction = &instruction};
  const Lanes lanes = guarded(instruction, group.lanes);
  if (lanes == 0 && operation.flow != Flow::kBranch) return go_on(group_index);
  switch (operation.flow) {
    case Flow::kBranch: return branch(group_index, instruction, lanes);
    case Flow::kEnd: return end(group_index, lanes);
    case Flow::kBlockBarrier:
      if (wait(group)) return;
      state_ = State::kAtBlockBarrier;
      break;
    case Flow::kWarpBarrier:
      if (wait(group)) return;
      ++warp_barriers_;
      learn(known_, told_);
      break;
    case Flow::kSleep: state_ = State::kAsleep; break;
    case Flow::kNext:
      if (operation.joins_lanes && wait(group)) return;
      operation.execute(*this, instruction, lanes);
      break;
  }
  go_on(group_index);
}

void Warp::go_on(size_t group_index) {
  ++groups_[group_index].next;
  if (groups_.size() > 1) meet(group_index);
}

// Lanes that have come to the same instruction go on together.
void Warp::meet(size_t group_index) {
  for (size_t other = 0; other < groups_.size(); ++other) {
    if (other == group_index || groups_[other].next != groups_[group_index].next) continue;
    groups_[other].lanes |= groups_[group_index].lanes;
    groups_[other].waits = false;
    groups_.erase(groups_.begin() + static_cast<ptrdiff_t>(group_index));
    return;
  }
}

void Warp::branch(size_t group_index, const Instruction& instruction, Lanes taken) {
  const Group before = groups_[group_index];
  const Lanes left = before.lanes & ~taken;
  groups_[group_index] = {.next = left ? before.next + 1 : instruction.target,
                          .lanes = left ? left : taken};
  if (left && taken) {
    groups_.push_back({.next = instruction.target, .lanes = taken});
    meet(groups_.size() - 1);
  }
  if (groups_.size() > 1) meet(group_index);
}

void Warp::end(size_t group_index, Lanes ended) {
  for_each(ended, [&](int lane) {
    if (copies_[lane].are_under_way()) fail("lane %d ends while its copies are under way", lane);
  });
  Group& group = groups_[group_index];
  group.lanes &= ~ended;
  ++group.next;
  if (group.lanes == 0) groups_.erase(groups_.begin() + static_cast<ptrdiff_t>(group_index));
  if (groups_.empty()) state_ = State::kEnded;
}

void Warp::pass_block_barrier(const KnownBarriers& known) {
  ++block_barriers_;
  learn(known_, known);
  state_ = State::kReady;
}

Block::Block(const Launch& launch, int number, GlobalMemory& global)
    : launch_(launch), number_(number), shared_(launch.shared_bytes), global_(global) {
  for (int warp = 0; warp < launch.threads / kLanes; ++warp) {
    warps_.push_back(std::make_unique<Warp>(*this, warp));
  }
}

Index Block::index() const {
  const Index grid = launch_.grid;
  const auto number = static_cast<unsigned>(number_);
  return {.x = number % grid.x, .y = number / grid.x % grid.y, .z = number / grid.x / grid.y};
}

size_t Block::count(Warp::State state) const {
  return std::count_if(warps_.begin(), warps_.end(),
                       [&](const auto& warp) { return warp->state() == state; });
}

bool Block::is_asleep() const { return count(Warp::State::kReady) == 0; }

void Block::pass_barrier_if_all_wait() {
  const size_t waiting = count(Warp::State::kAtBlockBarrier);
  if (waiting == 0 || waiting + count(Warp::State::kEnded) < warps_.size()) return;
  if (waiting < warps_.size()) {
    fail("%zu of %zu warps wait at a barrier, and the others have ended", waiting, warps_.size());
  }
  KnownBarriers known;
  for (const auto& warp : warps_) learn(known, warp->told());
  for (const auto& warp : warps_) warp->pass_block_barrier(known);
}

bool Block::run_some(uint64_t chance) {
  std::vector<Warp*> able;
  for (const auto& warp : warps_) {
    const Warp::State state = warp->state();
    if (state == Warp::State::kReady || state == Warp::State::kAsleep) able.push_back(warp.get());
  }
  if (able.empty()) return false;
  // A few instructions or many, so that warps part.
  const uint64_t most = chance % 4 ? 2048 : 16;
  able[(chance >> 8) % able.size()]->run(1 + static_cast<int>((chance >> 32) % most));
  pass_barrier_if_all_wait();
  return true;
}

}  // namespace attn::ptx
