// What calls and GPUs must keep to, as kernels and those who choose them agree on it.
#pragma once

#include <cstdint>

namespace attn::cuda {

// A sequence has fewer queries and keys, and no key is as far from a query: kernels count them, and
// add a band, in 32 bits.
constexpr int kMostRows = 1 << 29;
// Rows of all keys, as some kernels number them in 32 bits.
constexpr int64_t kMostKeyRows = int64_t{1} << 32;

constexpr int64_t kWidestRow = 256;

constexpr int kLeastCapability = 75;
constexpr int kWholeCapability = 80;  // from here on every dtype has its matrix instructions
// What a block of threads may have on every GPU from then on.
constexpr int kMostSharedBytes = 99 * 1024;

}  // namespace attn::cuda
