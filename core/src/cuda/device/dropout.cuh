// The shared draw of dropout, as attn/mask.h defines it, and which of a fragment's probabilities it
// keeps, each draw made by one of the lanes it serves: all of a warp join, and bit 4 n + e of what
// they get is that of element (n, e) of sums.
#pragma once

#include "cuda/device/shuffle.cuh"
#include "cuda/device/warp.cuh"
#include "problem/philox.h"
#include "problem/problem.h"

namespace attn::cuda {

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

ATTN_DEVICE bool keeps_key(const Dropout& dropout, int64_t b, int64_t h, int64_t query, int key) {
  const uint32_t kept = kept_keys(dropout, b, h, query, key / kDrawsPerCounter);
  return (kept >> key % kDrawsPerCounter & 1) != 0;
}

// Bits of kBlocks draws, each for eight columns further on: draw(column) is one's.
template <int kBlocks, class Draw>
ATTN_DEVICE uint32_t draw_blocks(Draw&& draw) {
  static_assert(kBlocks * kDrawsPerCounter <= 32);
  uint32_t drawn = 0;
#pragma unroll 1  // the code of a draw is long
  for (int n = 0; n < kBlocks; ++n) drawn |= draw(8 * n) << kDrawsPerCounter * n;
  return drawn;
}

// Rows are queries, columns keys, of which the first is a multiple of 4: draw(r, column) is that of
// the lane's row r for the four keys around its first one plus `column`. Each lane draws for one of
// its rows and for a neighbour, which uses the other half of the same words.
template <int kBlocks, class Draw>
ATTN_DEVICE uint32_t kept_of_query_rows(Draw&& draw) {
  const int mine = lane() % 2;
  const uint32_t drawn = draw_blocks<kBlocks>([&](int column) { return draw(mine, column); });
  constexpr uint32_t kFirstTwo = 0x33333333u;  // of each four
  const uint32_t own = drawn >> 2 * mine & kFirstTwo;
  const uint32_t other = shuffle_xor(drawn, 1) >> 2 * mine & kFirstTwo;
  return mine == 0 ? own | other << 2 : other | own << 2;
}

// Those of one head in a row, from the lane's first query in memory on.
template <int kBlocks>
ATTN_DEVICE uint32_t kept_of_query_rows(const Dropout& dropout, int64_t b, int64_t h, int64_t row,
                                        int key) {
  return kept_of_query_rows<kBlocks>([&](int r, int column) {
    return kept_keys(dropout, b, h, row + 8 * r, (key + column) / kDrawsPerCounter);
  });
}

// Rows are keys, columns queries. `row` is that of the lane's first query in memory, `key` its
// first key; that of the tile is a multiple of 4. The lanes of four keys in turn have the same
// queries: each of the four draws for one of their two, and for one of their two sets of keys.
template <int kBlocks>
ATTN_DEVICE uint32_t kept_of_key_rows(const Dropout& dropout, int64_t b, int64_t h, int64_t row,
                                      int key) {
  const int mine = lane() / 4 % 4;
  const int quad = (key - mine) / kDrawsPerCounter + mine / 2 * 2;
  const uint32_t drawn = draw_blocks<kBlocks>(
      [&](int column) { return kept_keys(dropout, b, h, row + column + mine % 2, quad); });
  uint32_t kept = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const uint32_t words = shuffle(drawn, (lane() & ~12) | e << 2);
    kept |= (words >> mine & 0x11111111u) << e;
  }
  return kept;
}

}  // namespace attn::cuda
