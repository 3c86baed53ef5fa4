// Where torch runs things: on its own threads, or on the current stream of a CUDA device.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "attn/runtime.h"

namespace attn_torch {

// Makes the device of a CUDA tensor the current one while it lives.
class DeviceOfCall {
 public:
  explicit DeviceOfCall(const torch::stable::Tensor& tensor);

  // Obeys torch.set_num_threads, and starts no second pool beside torch's.
  attn_exec executor() const;

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;  // torch's current one of that device
};

}  // namespace attn_torch
