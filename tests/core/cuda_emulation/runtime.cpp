// core/src/cuda/runtime.h for the emulated GPU: one device, of the capability that
// ATTN_EMULATED_CAPABILITY names.
#include "cuda/runtime.h"

#include <cstdlib>
#include <cstring>

#include "problem/refusal.h"

namespace attn::cuda {

int device_count() { return 1; }

DeviceProperties device_properties(int device) {
  if (device != 0) refuse_argument("expected CUDA device 0, got %d; there is one", device);
  const char* chosen = std::getenv("ATTN_EMULATED_CAPABILITY");
  const int capability = chosen ? std::atoi(chosen) : 80;
  constexpr int64_t kKiB = 1024;
  const int64_t shared = capability == 75                        ? 64
                         : capability == 80                      ? 163
                         : capability == 90 || capability == 100 ? 227
                                                                 : 99;
  return {.capability = capability, .multiprocessors = 3, .shared_bytes = shared * kKiB};
}

void check(int, const char*) {}

void clear_memory(void* memory, size_t bytes, void*) { std::memset(memory, 0, bytes); }

DeviceGuard::DeviceGuard(int) : previous_(0) {}
DeviceGuard::~DeviceGuard() {}

}  // namespace attn::cuda
