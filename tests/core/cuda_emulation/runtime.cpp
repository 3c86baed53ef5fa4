// core/src/cuda/runtime.h for the emulated GPU, of which there is one.
#include "cuda/runtime.h"

#include <cstring>

#include "emulated_device.h"
#include "problem/refusal.h"

namespace attn::cuda {

int device_count() { return 1; }

DeviceProperties device_properties(int device) {
  if (device != 0) refuse_argument("expected CUDA device 0, got %d; there is one", device);
  return {.capability = gpu::capability(),
          .multiprocessors = gpu::kMultiprocessors,
          .shared_bytes = gpu::most_shared_bytes()};
}

void check(int, const char*) {}

void clear_memory(void* memory, size_t bytes, void*) { std::memset(memory, 0, bytes); }

DeviceGuard::DeviceGuard(int) : previous_(0) {}
DeviceGuard::~DeviceGuard() {}

}  // namespace attn::cuda
