// core/src/cuda/launch.cuh for the emulated GPU: kernels run before the launch returns.
#pragma once

#include <cstddef>

#include "cuda/device/platform.cuh"
#include "cuda/grid.h"
#include "cuda/runtime.h"

namespace attn::cuda {

template <class Arguments>
void launch(void (*kernel)(Arguments), Grid grid, int threads, size_t shared_bytes, void*,
            const Arguments& arguments) {
  if (grid.is_empty()) return;
  require_launchable(grid);
  if (grid.x < 0 || grid.y < 0 || grid.z < 0) {
    emulation::fail("a grid of %ld by %ld by %ld blocks", static_cast<long>(grid.x),
                    static_cast<long>(grid.y), static_cast<long>(grid.z));
  }
  if (threads <= 0 || threads > 1024 || threads % emulation::kLanes != 0) {
    emulation::fail("blocks of %d threads", threads);
  }
  if (static_cast<int64_t>(shared_bytes) > device_properties(0).shared_bytes) {
    emulation::fail("%zu bytes of shared memory", shared_bytes);
  }
  static_assert(sizeof(Arguments) <= 4096, "what a launch may carry on every GPU");
  struct Context {
    void (*kernel)(Arguments);
    const Arguments& arguments;
  } context{kernel, arguments};
  const auto run = [](const void* given) {
    const Context& launched = *static_cast<const Context*>(given);
    launched.kernel(launched.arguments);
  };
  emulation::run_grid(
      {static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z)}, threads,
      shared_bytes, run, &context);
}

}  // namespace attn::cuda
