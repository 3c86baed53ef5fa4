// The CUDA runtime as the host side needs it: which device, what it has, and its errors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attn::cuda {

struct DeviceProperties {
  int capability = 0;  // 10 * major + minor: 80
  int multiprocessors = 0;
  int64_t shared_bytes = 0;  // that one block may have
};

// Devices that can run something; 0 where there is no driver.
int device_count();

// Throws Refusal if there is no such device.
DeviceProperties device_properties(int device);

// Bytes of shared memory that one block may have on the current device.
int most_shared_bytes();

// Throws Refusal with ATTN_ERROR_DEVICE, naming `what` failed, if `error`, a cudaError_t, is one.
void check(int error, const char* what);

// Queues the clearing of so many bytes of the current device's memory.
void clear_memory(void* memory, size_t bytes, void* stream);

// Makes a device the current one while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_;
};

}  // namespace attn::cuda
