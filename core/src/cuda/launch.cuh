// Launches a kernel on a stream; errors become a Refusal.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/grid.h"
#include "cuda/runtime.h"

namespace attn::cuda {

// Runs `kernel` on every block of `grid`; an empty grid is none. `threads` is a multiple of 32.
template <class Arguments>
void launch(void (*kernel)(Arguments), Grid grid, int threads, size_t shared_bytes, void* stream,
            const Arguments& arguments) {
  if (grid.is_empty()) return;
  require_launchable(grid);
  constexpr size_t kUnasked = 48 * 1024;  // bytes of shared memory
  if (shared_bytes > kUnasked) {
    // The same number whatever this launch takes: a thread that launches the kernel with less must
    // not lower it between these two calls of another.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               most_shared_bytes()),
          "a kernel's shared memory");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments), "a kernel launch");
}

}  // namespace attn::cuda
