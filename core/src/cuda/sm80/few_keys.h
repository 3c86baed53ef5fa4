// Rows that see few keys, and calls in which every row does.
#pragma once

#include "problem/problem.h"

namespace attn::cuda {

// A row that sees no more of them sums too few terms for rounding to 16 bits to average out.
constexpr int kFewKeys = 32;

// Whether a call's probabilities and score gradients are multiplied in two parts: rounded to 16
// bits, and what that took of them. Among more queries some have as large an error in any way. The
// batch does not count: each of its elements has the bits that it has alone.
inline bool keeps_rests(const Problem& p) {
  constexpr int64_t kFewQueries = 256;
  return element_bytes(p.query.dtype) == 2 && p.Mkv <= kFewKeys && p.Mq <= kFewQueries;
}

}  // namespace attn::cuda
