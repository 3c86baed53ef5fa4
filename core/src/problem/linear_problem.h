// One validated linear layer, in the terms the kernels think in. Plain data: no maths, no STL.
#pragma once

#include <cstdint>

#include "problem/problem.h"

namespace attn {

// An array [rows, width] whose last axis is contiguous; one row is an array [width]. The stride in
// elements.
struct Rows {
  char* data = nullptr;
  int64_t stride = 0;

  [[gnu::always_inline]] char* row(int64_t index, DType dtype) const {
    return data + index * stride * element_bytes(dtype);
  }
};

struct LinearProblem {
  int64_t N = 0, E = 0, F = 0;
  DType dtype = DType::kFloat32;  // of every array
  Rows x, weight, out;
  const char* bias = nullptr;  // optional
};

}  // namespace attn
