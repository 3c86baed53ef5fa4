// Whether asynchronous copies can take rows of operands and biases: 16 bytes at a time, as they
// lie.
#pragma once

#include "problem/problem.h"

namespace attn::cuda {

constexpr int64_t kCopiedBytes = 16;

inline bool has_aligned_rows(const HeadRows& x, DType dtype, int64_t width) {
  const auto is_whole = [dtype](int64_t elements) {
    return elements * element_bytes(dtype) % kCopiedBytes == 0;
  };
  return x.dtype == dtype && reinterpret_cast<uintptr_t>(x.data) % kCopiedBytes == 0 &&
         is_whole(width) && is_whole(x.stride_b) && is_whole(x.stride_m) && is_whole(x.stride_h);
}

// Of a tensor like the scores, its keys from a multiple of 16 bytes on.
inline bool has_aligned_rows(const Scores& x, DType dtype, int64_t keys) {
  const auto is_whole = [dtype](int64_t elements) {
    return elements * element_bytes(dtype) % kCopiedBytes == 0;
  };
  return x.dtype == dtype && reinterpret_cast<uintptr_t>(x.data) % kCopiedBytes == 0 &&
         x.stride_n == 1 && is_whole(keys) && is_whole(x.stride_b) && is_whole(x.stride_h) &&
         is_whole(x.stride_m);
}

}  // namespace attn::cuda
