// Where a tensor's elements lie, and whether those of two tensors may meet.
#pragma once

#include <cstdint>

#include "attn/tensor.h"

namespace attn {

// The addresses from the first byte of all elements up to the end of the last one.
struct MemoryRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  bool meets(const MemoryRange& other) const { return begin < other.end && other.begin < end; }
};

// Of a tensor that is not empty, whose elements are of so many bytes.
inline MemoryRange range_of(const attn_tensor& tensor, int64_t element_bytes) {
  int64_t before = 0, after = 0;  // elements
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    const int64_t reach = tensor.strides[axis] * (tensor.shape[axis] - 1);
    (reach < 0 ? before : after) += reach;
  }
  const auto data = reinterpret_cast<uintptr_t>(tensor.data);
  return {.begin = data + static_cast<uintptr_t>(before * element_bytes),
          .end = data + static_cast<uintptr_t>((after + 1) * element_bytes)};
}

// Whether every place in the tensor's range is an element: taken from the smallest stride up, each
// steps over just what the smaller ones fill. Then it shares an element with whatever it meets.
bool fills_its_range(const attn_tensor& tensor);

}  // namespace attn
