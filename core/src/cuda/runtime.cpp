// Asks the CUDA runtime, which is linked statically and needs no driver until it is asked.
#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include "problem/refusal.h"

namespace attn::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "a query of the device");
  return value;
}

// Whether there is nothing to run on, rather than something that does not run. Where there is no
// driver at all the runtime calls it too old.
bool is_absence(cudaError_t error) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return error == cudaErrorNoDevice || (error == cudaErrorInsufficientDriver && driver == 0);
}

}  // namespace

void check(int error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report this one's error
  refuse_device("expected %s to succeed, got CUDA error %d, %s; see the driver's log", what, error,
                cudaGetErrorString(static_cast<cudaError_t>(error)));
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

DeviceProperties device_properties(int device) {
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess && !is_absence(counted)) check(counted, "a count of the devices");
  if (count == 0) {
    cudaGetLastError();
    refuse_unsupported("expected a CUDA device, got a machine without one; move the tensors");
  }
  if (device < 0 || device >= count) {
    refuse_argument("expected device_id to be one of %d CUDA devices, got %d; pass the tensors'",
                    count, device);
  }
  return {.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                        attribute(cudaDevAttrComputeCapabilityMinor, device),
          .multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device),
          .shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

int most_shared_bytes() {
  int device = 0;
  check(cudaGetDevice(&device), "a query of the current device");
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

void clear_memory(void* memory, size_t bytes, void* stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "a clearing");
}

DeviceGuard::DeviceGuard(int device) : previous_(device) {
  check(cudaGetDevice(&previous_), "a query of the current device");
  check(cudaSetDevice(device), "a change of the current device");
}

DeviceGuard::~DeviceGuard() { cudaSetDevice(previous_); }

}  // namespace attn::cuda
