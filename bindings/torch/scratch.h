// The memory a call works in: on the stack where little is needed, else on the heap; for CUDA
// tensors from torch's allocator of their device.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "tensor_view.h"

namespace attn_torch {

class Scratch {
 public:
  Scratch(size_t bytes, const Tensor& beside) : bytes_(bytes) {
    if (!beside.is_cpu()) {
      // Given back while kernels still use it: the allocator orders that by the stream.
      device_ = empty({static_cast<int64_t>(bytes)}, ScalarType::Byte, beside);
      data_ = const_cast<void*>(device_->const_data_ptr());
    } else if (bytes > sizeof(inline_)) {
      // Default-initialised: the kernels write before they read.
      heap_.reset(new char[bytes]);
      data_ = heap_.get();
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  // Saves the smallest calls, a few microseconds long, an allocation.
  alignas(64) char inline_[8192];
  void* data_ = inline_;
  std::unique_ptr<char[]> heap_;
  std::optional<Tensor> device_;
  size_t bytes_;
};

}  // namespace attn_torch
