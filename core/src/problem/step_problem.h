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

using Flag = uint8_t;  // a bool in memory

// The rows of one step of each stream: those in a slot of a ring, or all that there are.
struct StepRows {
  const HeadRows& rows;
  int64_t slot = 0;

  ATTN_INLINE char* row(int64_t b, int64_t h) const { return rows.row(b, slot, h); }
};

struct StepProblem {
  // Over all slots of the rings, which are its key and value; without its bias, and with this
  // step's query even where an older one attends.
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

  ATTN_INLINE bool is_active(int64_t b) const { return !active || active.at<Flag>(b); }
  ATTN_INLINE bool is_padding(int64_t b, int64_t slot) const {
    return padding_ring && padding_ring.at<Flag>(b, slot);
  }

  // What is added to the score of each slot, the bias or whether it is seen: heads that have rows
  // of their own, and a place for them, [B, slot_bias_heads, 1, R], in memory.
  ATTN_INLINE int64_t slot_bias_heads() const { return bias ? bias_heads : 1; }
  ATTN_INLINE Scores slot_bias(char* memory) const {
    const int64_t slots = attention.Mkv, heads = slot_bias_heads();
    return {.data = memory,
            .dtype = bias ? bias.dtype : DType::kBool,
            .stride_b = heads * slots,
            .stride_h = heads > 1 ? slots : 0,
            .stride_m = 0,
            .stride_n = 1};
  }

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

// After an append: which slots of a stream's rings are in its window.
struct StreamWindow {
  int64_t slots, newest;  // newest: a slot
  int64_t seen;           // how many steps of the window there are; none for a stream at rest

  // position: how many steps the stream has seen.
  ATTN_INLINE StreamWindow(const StepProblem& p, int64_t b, int64_t position)
      : slots(p.attention.Mkv),
        newest((position - 1) % slots),
        seen(!p.is_active(b)       ? 0
             : position < p.window ? position
                                   : p.window) {}

  // How many steps after the slot's came.
  ATTN_INLINE int64_t age(int64_t slot) const {
    return newest - slot + (slot > newest ? slots : 0);
  }
};

}  // namespace attn
