// Launches a kernel on a stream; errors become a Refusal.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/runtime.h"

namespace attn::cuda {

// Extents in blocks. At most 2^31 - 1, 65535 and 65535.
struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Runs `kernel` on every block of `grid`; an empty grid is none. `threads` is a multiple of 32.
template <class Arguments>
void launch(void (*kernel)(Arguments), Grid grid, int threads, size_t shared_bytes, void* stream,
            const Arguments& arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)),
        "a kernel's shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments), "a kernel launch");
}

}  // namespace attn::cuda
