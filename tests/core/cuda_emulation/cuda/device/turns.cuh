// core/src/cuda/device/turns.cuh for the emulated GPU, which runs one block after the other:
// whoever would have to wait, would wait forever.
#pragma once

#include "cuda/device/platform.cuh"
#include "cuda/device/vector.cuh"

namespace attn::cuda {

inline int take_ticket(int32_t* tickets) { return (*tickets)++; }

inline void wait_for_turn(int32_t* now, int turn) {
  if (*now != turn) emulation::fail("waits for turn %d, while it is %d's", turn, *now);
}

inline void pass_turn(int32_t* now, int turn) { *now = turn + 1; }

inline FourFloats read_shared_by_blocks(const FourFloats* at) { return *at; }

}  // namespace attn::cuda
