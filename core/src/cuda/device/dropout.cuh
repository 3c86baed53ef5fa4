// The shared draw of dropout, as attn/mask.h defines it.
#pragma once

#include "cuda/device/platform.cuh"
#include "problem/philox.h"
#include "problem/problem.h"

namespace attn::cuda {

constexpr int kDrawsPerCounter = 4;

// Bit w says whether dropout keeps the probability of key 4 key_quad + w. `query` is the row in
// memory.
ATTN_DEVICE uint32_t kept_keys(const Dropout& dropout, int64_t b, int64_t h, int64_t query,
                               int key_quad) {
  const PhiloxWords words = philox4x32_10(
      static_cast<uint32_t>(b), static_cast<uint32_t>(h), static_cast<uint32_t>(query),
      static_cast<uint32_t>(key_quad), dropout.key[0], dropout.key[1]);
  uint32_t kept = 0;
#pragma unroll
  for (int w = 0; w < kDrawsPerCounter; ++w) {
    kept |= static_cast<uint32_t>(words.w[w] >= dropout.threshold) << w;
  }
  return kept;
}

}  // namespace attn::cuda
