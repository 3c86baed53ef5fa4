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
  // Over all slots of the rings, which are its key and value; without its bias, and with this
  // step's query, be it one that waits.
  ForwardProblem attention;
  HeadRows query, key, value;  // this step's
  HeadRows query_ring;         // optional
  HeadRows attending_query;    // optional, and only with query_ring: the caller's place for it
  StreamValues position;
  StreamValues padding, padding_ring, active;  // optional
  Scores bias;                                 // optional; of the window's keys, the newest last
  int64_t bias_heads = 0;                      // rows of it in each stream: 1 if heads share one
  int64_t window = 0;
  int64_t delay = 0;  // slots of query_ring

  // Bytes of workspace that queries attend from, a multiple of 64: none if the caller has a place
  // for them, or they did not wait.
  ATTN_INLINE size_t waited_query_bytes() const {
    if (!query_ring || attending_query) return 0;
    const int64_t bytes = attention.B * attention.Hq * attention.K * element_bytes(query.dtype);
    return static_cast<size_t>((bytes + 63) / 64 * 64);
  }
  // Where queries attend from, with workspace of so many bytes.
  ATTN_INLINE HeadRows query_that_attends(char* workspace) const {
    if (!query_ring) return query;
    if (attending_query) return attending_query;
    const int64_t row = attention.Hq * attention.K;
    return {.data = workspace,
            .dtype = query.dtype,
            .stride_b = row,
            .stride_m = row,
            .stride_h = attention.K};
  }
};

}  // namespace attn
