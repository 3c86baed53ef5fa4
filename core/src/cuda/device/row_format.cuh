// How rows of numbers lie in memory, whatever the dtype, and four numbers of one at a time.
#pragma once

#include "cuda/device/element.cuh"
#include "cuda/device/vector.cuh"
#include "problem/problem.h"

namespace attn::cuda {

// Four numbers at an address, of which `count` are there, the others 0.
template <class Number>
ATTN_DEVICE void read_four(Number (&x)[4], const char* at, int count) {
  using Four = Vector<Number, 4>;
  if (count >= 4 && reinterpret_cast<uintptr_t>(at) % sizeof(Four) == 0) {
    const Four four = *reinterpret_cast<const Four*>(at);
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = four.values[c];
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      x[c] = c < count ? reinterpret_cast<const Number*>(at)[c] : Number{};
  }
}

template <class Element>
ATTN_DEVICE Vector<Element, 4> four_of(const float (&x)[4]) {
  return {{from_float<Element>(x[0]), from_float<Element>(x[1]), from_float<Element>(x[2]),
           from_float<Element>(x[3])}};
}

struct RowFormat {
  DType dtype;
  int width;

  ATTN_DEVICE RowFormat(const HeadRows& rows, int64_t width)
      : dtype(rows.dtype), width(static_cast<int>(width)) {}

  ATTN_DEVICE bool is_wide() const { return dtype == DType::kFloat32; }

  // Four numbers from `column` on; zeros beyond the width, and of no row.
  ATTN_DEVICE void load(float (&x)[4], const char* row, int column) const {
    const int count = row ? width - column : 0;
    if (count <= 0) {
#pragma unroll
      for (int c = 0; c < 4; ++c) x[c] = 0.0f;
      return;
    }
    const char* at = row + column * element_bytes(dtype);
    if (is_wide()) return read_four<float>(x, at, count);
    uint16_t bits[4];
    read_four<uint16_t>(bits, at, count);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      x[c] = dtype == DType::kBFloat16 ? to_float(BFloat16{bits[c]}) : to_float(Half{bits[c]});
    }
  }
};

}  // namespace attn::cuda
