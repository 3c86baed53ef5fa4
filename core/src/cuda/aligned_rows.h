// Whether asynchronous copies can take an operand's rows: 16 bytes at a time, as they lie.
#pragma once

#include "problem/problem.h"

namespace attn::cuda {

inline bool has_aligned_rows(const HeadRows& x, DType dtype, int64_t width) {
  constexpr int64_t kCopiedBytes = 16;
  const auto is_whole = [dtype](int64_t elements) {
    return elements * element_bytes(dtype) % kCopiedBytes == 0;
  };
  return x.dtype == dtype && reinterpret_cast<uintptr_t>(x.data) % kCopiedBytes == 0 &&
         is_whole(width) && is_whole(x.stride_b) && is_whole(x.stride_m) && is_whole(x.stride_h);
}

}  // namespace attn::cuda
