// One validated step over ring buffers, in the terms the kernels think in. Plain data.
#pragma once

#include <cstdint>

#include "problem/inline.h"
#include "problem/problem.h"

namespace attn {

// Numbers of each stream, [B] or [B, R]. Strides in elements.
struct StreamValues {
  char* data = nullptr;
  int64_t stride_b = 0;
  int64_t stride_r = 0;

  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
  template <class T>
  ATTN_INLINE T& at(int64_t b, int64_t slot = 0) const {
    return reinterpret_cast<T*>(data)[b * stride_b + slot * stride_r];
  }
};

struct StepProblem {
  // Over all slots of the rings, which are its key and value; without its bias.
  ForwardProblem attention;
  HeadRows key, value;  // this step's
  StreamValues position;
  StreamValues padding, padding_ring, active;  // optional
  Scores bias;                                 // optional; of the window's keys, the newest last
  int64_t bias_heads = 0;                      // rows of it in each stream: 1 if heads share one
  int64_t window = 0;
};

}  // namespace attn
