// How blocks of one launch take turns, in an order that does not depend on when they run.
//
// A block waits only for blocks that took their tickets before it, and so run already: whatever the
// order in which a GPU starts them, the first of those that wait can go on.
#pragma once

#include "cuda/device/platform.cuh"
#include "cuda/device/vector.cuh"

namespace attn::cuda {

// How many took one before. By one thread of a block.
ATTN_DEVICE int take_ticket(int32_t* tickets) { return atomicAdd(tickets, 1); }

// Waits until `turn` is what it says there. By one lane of each warp: what the blocks before wrote
// until they passed the turn on is then seen by that warp's lanes after a synchronise_warp, if they
// read it with read_shared_by_blocks.
ATTN_DEVICE void wait_for_turn(int32_t* now, int turn) {
  while (__nv_atomic_load_n(now, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE) != turn) {
    __nanosleep(20);
  }
}

// By one thread, after a barrier of the block.
ATTN_DEVICE void pass_turn(int32_t* now, int turn) {
  __nv_atomic_store_n(now, turn + 1, __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
}

// From the cache that all multiprocessors share.
ATTN_DEVICE FourFloats read_shared_by_blocks(const FourFloats* at) {
  const float4 x = __ldcg(reinterpret_cast<const float4*>(at));
  return {{x.x, x.y, x.z, x.w}};
}

}  // namespace attn::cuda
