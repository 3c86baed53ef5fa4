// Who touched a byte of memory, and whether someone else may do so now.
#pragma once

#include <cstdint>
#include <vector>

namespace attn::ptx {

constexpr int kLanes = 32;  // of a warp

// When a thread does something: how many barriers of its block, and of its warp, it has passed, and
// of each other block, how many it knows that block to have passed.
struct Moment {
  int32_t block = 0, thread = 0;
  uint32_t block_barriers = 0, warp_barriers = 0;
  const std::vector<uint32_t>* known_barriers = nullptr;  // null: of no other block any
};

// The latest access to a byte, or several that nothing orders.
class Access {
 public:
  // Whether nothing orders it before what is done now: no barrier of their block or warp, no word
  // of one block to the next.
  bool races_with(const Moment& now) const {
    if (block_ == kNobody) return false;
    if (block_ == kSeveral) return true;
    if (block_ != now.block) {
      return !now.known_barriers || (*now.known_barriers)[block_] <= block_barriers_;
    }
    if (thread_ == now.thread || block_barriers_ < now.block_barriers) return false;
    return warp_ != now.thread / kLanes || warp_barriers_ >= now.warp_barriers;
  }

  // Joins an access of now: it stands for those that are ordered before it.
  void note(const Moment& now) {
    const int32_t warp = now.thread / kLanes;
    if (!races_with(now)) {
      block_ = now.block;
      warp_ = warp;
      thread_ = now.thread;
    } else if (block_ != now.block) {
      block_ = kSeveral;
    } else {
      warp_ = warp_ == warp ? warp : int32_t{kSeveral};
      thread_ = kSeveral;
    }
    block_barriers_ = now.block_barriers;
    warp_barriers_ = now.warp_barriers;
  }
  void forget() { *this = Access(); }

  int32_t block() const { return block_; }
  int32_t thread() const { return thread_; }

 private:
  static constexpr int32_t kNobody = -1, kSeveral = -2;
  int32_t block_ = kNobody, warp_ = kNobody, thread_ = kNobody;
  uint32_t block_barriers_ = 0, warp_barriers_ = 0;
};

}  // namespace attn::ptx
