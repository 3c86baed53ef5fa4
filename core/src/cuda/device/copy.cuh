// Asynchronous copies from global to shared memory; before sm_80 they happen at once.
#pragma once

#include "cuda/device/instructions.cuh"

namespace attn::cuda {

template <int Bytes>
struct alignas(Bytes) CopyUnit {
  uint32_t words[Bytes / 4];
};

// Copies 4, 8 or 16 bytes, both sides aligned to as many; zeros, and reads nothing, if not
// `present`. The target is undefined until a wait covers the copy, and other threads see it after a
// barrier that follows the wait.
template <int Bytes>
ATTN_DEVICE void copy_async(void* shared, const void* global, bool present) {
  using Unit = CopyUnit<Bytes>;
  Unit& target = *static_cast<Unit*>(shared);
  const Unit* source = static_cast<const Unit*>(global);
#if __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<Unit>::copy(*source, target, present);
  } else {
    cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<Unit>::copy(*source, target, present);
  }
#else
  target = present ? *source : Unit{};
#endif
}

// Closes a group of this thread's copies, possibly an empty one.
ATTN_DEVICE void commit_copies() {
#if defined(__CUDA_ARCH__)
  cute::cp_async_fence();
#endif
}

// Waits until at most the N latest groups of this thread are under way.
template <int N>
ATTN_DEVICE void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  cute::cp_async_wait<N>();
#endif
}

}  // namespace attn::cuda
