// Torch tensors as the C ABI sees them, and outputs allocated the way torch allocates.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "attn/attn.h"

namespace attn_torch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Borrows the memory, shape and strides of `tensor`, which must outlive the result.
attn_tensor view(const Tensor& tensor);

// Whether the core reads such rows: neighbours lie side by side, or there are none.
bool has_contiguous_rows(const Tensor& tensor);

// An optional C ABI argument: the view's address, or NULL where the tensor is absent.
class OptionalView {
 public:
  explicit OptionalView(const std::optional<Tensor>& tensor) : present_(tensor.has_value()) {
    if (present_) view_ = view(*tensor);
  }
  const attn_tensor* get() const { return present_ ? &view_ : nullptr; }

 private:
  bool present_;
  attn_tensor view_{};
};

// An uninitialised contiguous tensor on the device of `beside`.
Tensor empty(std::initializer_list<int64_t> shape, ScalarType dtype, const Tensor& beside);

// An uninitialised contiguous tensor with the shape, dtype and device of `like`.
Tensor empty_contiguous_like(const Tensor& like);

}  // namespace attn_torch
