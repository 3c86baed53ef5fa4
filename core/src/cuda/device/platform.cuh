// What kernels see of the machine: annotations, indices, barriers and shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define ATTN_DEVICE __device__ __forceinline__
// A kernel is  template <…> ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(threads, blocks per multiprocessor)
// name(ATTN_ARGUMENTS const Arguments arguments), launched through cuda/launch.cuh.
#define ATTN_KERNEL __global__
#define ATTN_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define ATTN_ARGUMENTS __grid_constant__

namespace attn::cuda {

// What is compiled runs on GPUs from here on: 80 for sm_80. Bodies of kernels that no GPU before
// sm_80 can run are left out there, which saves their compilation.
#if defined(__CUDA_ARCH__)
constexpr int kCompiledCapability = __CUDA_ARCH__ / 10;
#else
constexpr int kCompiledCapability = 80;
#endif

struct BlockIndex {
  int x, y, z;
};

// Blocks have one dimension, of whole warps.
ATTN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }

ATTN_DEVICE BlockIndex block_index() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}

// Every thread of the block, or lane of the warp, has come here and sees what the others wrote.
ATTN_DEVICE void synchronise_block() { __syncthreads(); }
ATTN_DEVICE void synchronise_warp() { __syncwarp(); }

// The block's dynamic shared memory, aligned to 128 bytes; its contents are undefined at first.
ATTN_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char attn_shared_memory[];
  return attn_shared_memory;
}

// Returns x, but hides that from the compiler: what is computed from it is computed where it
// stands, not kept in registers through the loops before.
ATTN_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
template <class T>
ATTN_DEVICE const T& opaque(const T& x) {
  const T* at = &x;
  asm volatile("" : "+l"(at));
  return *at;
}

}  // namespace attn::cuda
