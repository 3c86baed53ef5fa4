// The CUDA runtime, as far as the library asks for it: one device, whose memory is the host's.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "../emulated_device.h"
#include "fail.h"
#include "machine.h"

namespace {

using attn::ptx::fail;
using attn::ptx::Program;

// What nvcc leaves in an object for the runtime: PTX among others, each behind a header.
struct FatBinaryWrapper {
  uint32_t magic, version;
  const char* data;
  void* unused;
};
struct FatBinaryHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct FatBinaryEntry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
};
constexpr uint16_t kPtx = 1;

// A kernel, by the host's function that stands for it. Its PTX is read when it is first launched:
// most never are.
struct Kernel {
  const FatBinaryWrapper* binary = nullptr;
  std::string name;
  std::optional<Program> program;
  size_t most_dynamic_bytes = 48 * 1024;
};

std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;
  return all;
}

// The newest PTX that the GPU runs.
std::string_view ptx_of(const FatBinaryWrapper& wrapper) {
  const auto& header = *reinterpret_cast<const FatBinaryHeader*>(wrapper.data);
  const char* at = wrapper.data + header.header_bytes;
  const char* const end = at + header.bytes;
  std::string_view best;
  int best_target = 0;
  while (at < end) {
    const auto& entry = *reinterpret_cast<const FatBinaryEntry*>(at);
    const std::string_view text(at + entry.header_bytes, entry.bytes);
    at += entry.header_bytes + entry.bytes;
    constexpr std::string_view kTarget = ".target sm_";
    const size_t place = text.find(kTarget);
    if (entry.kind != kPtx || place == text.npos) continue;
    const int target = std::atoi(text.data() + place + kTarget.size());
    if (target <= best_target || target > gpu::capability()) continue;
    best = text.substr(0, text.find('\0'));
    best_target = target;
  }
  if (best.empty()) fail("expected an object with PTX for sm_%d, got none", gpu::capability());
  return best;
}

Kernel& kernel_of(const void* function) {
  const auto known = kernels().find(function);
  if (known == kernels().end()) fail("a launch of a kernel that is not registered");
  Kernel& kernel = known->second;
  if (!kernel.program) {
    for (Program& program : attn::ptx::read_programs(ptx_of(*kernel.binary))) {
      for (auto& [other, other_kernel] : kernels()) {
        if (other_kernel.name == program.name) other_kernel.program = program;
      }
    }
    if (!kernel.program) fail("PTX has no kernel %s", kernel.name.c_str());
  }
  return kernel;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) { return static_cast<void**>(wrapper); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void** handle, const char* function, char*, const char* name, int,
                            uint3*, uint3*, dim3*, dim3*, int*) {
  Kernel& kernel = kernels()[function];
  kernel.binary = reinterpret_cast<const FatBinaryWrapper*>(handle);
  kernel.name = name;
}

// Kernels are launched by cudaLaunchKernelExC alone.
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, struct CUstream_st*) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorUnknown; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorUnknown; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorUnknown;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  if (value > gpu::most_shared_bytes()) return cudaErrorInvalidValue;
  kernel_of(function).most_dynamic_bytes = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  const Kernel& kernel = kernel_of(function);
  const auto [x, y, z] = config->gridDim;
  const unsigned threads = config->blockDim.x;
  if (config->dynamicSmemBytes > kernel.most_dynamic_bytes || threads % 32 != 0 || threads == 0 ||
      config->blockDim.y != 1 || config->blockDim.z != 1 || y > 65535 || z > 65535 ||
      static_cast<int>(threads) > kernel.program->most_threads || x * y * z == 0) {
    return cudaErrorInvalidValue;
  }
  attn::ptx::run_grid({.program = *kernel.program,
                       .grid = {.x = x, .y = y, .z = z},
                       .threads = static_cast<int>(threads),
                       .shared_bytes = config->dynamicSmemBytes,
                       .parameters = static_cast<const char*>(arguments[0])});
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "a refusal of the PTX machine"; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *value = gpu::capability() / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = gpu::capability() % 10; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = gpu::kMultiprocessors; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = gpu::most_shared_bytes();
      return cudaSuccess;
    default: return cudaErrorInvalidValue;
  }
}

}  // extern "C"
