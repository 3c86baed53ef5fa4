// The callback through which the core uses torch's thread pool, and torch's current CUDA stream.
#include "executor.h"

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "expect.h"

namespace attn_torch {
namespace {

void parallel_for(int64_t begin, int64_t end, int64_t grain, attn_task task, void* context,
                  void* /*executor*/) {
  // Torch reports failure only if a task throws, and the core's never do.
  (void)torch_parallel_for(begin, end, grain, task, context);
}

// Looked up, not linked: one build serves torch with and without CUDA.
void* current_cuda_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(symbol);
  }();
  expect(function, "attn_ops: expected a torch with CUDA for CUDA tensors, got one without");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

}  // namespace

DeviceOfCall::DeviceOfCall(const torch::stable::Tensor& tensor) {
  if (tensor.is_cpu()) return;
  const int32_t device = tensor.get_device_index();
  guard_.emplace(device);
  stream_ = current_cuda_stream(device);
}

attn_exec DeviceOfCall::executor() const {
  attn_exec exec = ATTN_EXEC_INIT;
  exec.num_threads = static_cast<int32_t>(torch::stable::get_num_threads());
  exec.parallel_for = parallel_for;
  exec.stream = stream_;
  return exec;
}

}  // namespace attn_torch
