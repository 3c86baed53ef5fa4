// The parts of the mask that fragments of scores compute for themselves, 16 rows at a time.
#pragma once

#include "cuda/device/dropout.cuh"
#include "cuda/device/key_tiles.cuh"
#include "cuda/device/products.cuh"
#include "cuda/device/score_terms.cuh"

namespace attn::cuda {

// Applies map(x, r, c) to each of a lane's scores x: that of its row 8 r and column c.
template <int kColumns, class Map>
ATTN_DEVICE void each_score(Sums<kColumns>& scores, Map&& map) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) map(scores.values[n][2 * r + e], r, 8 * n + e);
    }
  }
}

// Excludes what the band and the sequence's end exclude. `row` and `key` are the lane's first.
template <int kColumns>
ATTN_DEVICE void apply_band(Sums<kColumns>& scores, const KeyBand& band, int row, int key) {
  const int begin[2] = {band.begin(row) - key, band.begin(row + 8) - key};
  const int end[2] = {band.end(row) - key, band.end(row + 8) - key};
  each_score(scores, [&](float& x, int r, int c) {
    if (c < begin[r] || c >= end[r]) x = -infinity();
  });
}

// Brings scores to base 2 and caps them; softcap is in base 2 too, 0: none.
template <int kColumns>
ATTN_DEVICE void apply_scale(Sums<kColumns>& scores, float scale, float softcap) {
  if (softcap == 0.0f) return each_score(scores, [&](float& x, int, int) { x *= scale; });
  const float scale_to_caps = scale / softcap;
  each_score(scores, [&](float& x, int, int) { x = softcap * tanh_accurate(x * scale_to_caps); });
}

// Sets the probabilities that dropout drops to 0; the others are yet to be scaled. `row` is that of
// the lane's first query in memory, `key` its first key.
template <int kColumns>
ATTN_DEVICE void apply_dropout(Sums<kColumns>& probabilities, const Dropout& dropout, int64_t b,
                               int64_t h, int64_t row, int key) {
  const uint32_t kept = kept_of_query_rows<kColumns / 8>(dropout, b, h, row, key);
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if ((kept >> (4 * n + e) & 1) == 0) probabilities.values[n][e] = 0.0f;
    }
  }
}

}  // namespace attn::cuda
