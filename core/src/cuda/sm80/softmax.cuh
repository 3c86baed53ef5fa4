// The online softmax of a warp's rows of scores against one tile of keys after another.
// Source: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3, in base 2.
#pragma once

#include "cuda/device/arithmetic.cuh"
#include "cuda/device/products.cuh"
#include "cuda/device/score_terms.cuh"
#include "cuda/device/warp.cuh"

namespace attn::cuda {

// The maximum follows the scores only when they exceed it by this much, in base 2: probabilities
// stay below 2^8, and what was accumulated is seldom rescaled. Each row decides for itself.
constexpr float kMaximumSlack = 8.0f;

// The maximum is rounded when it is scaled; from here on the scores are too, before it is taken
// away: 2 to the power of what rounding took from it alone may be infinite, or 0.
constexpr float kMostFused = 0x1p24f;

// Two rows of a fragment of sums, g and g + 8: probabilities are 2^(score - maximum), and `total`
// is their sum over this lane's columns.
struct RunningSoftmax {
  float maximum[2] = {-infinity(), -infinity()};
  float total[2] = {0.0f, 0.0f};
};

// Turns 16 rows of scores into probabilities, where `factor` > 0 brings a score to base 2. Sets
// the factors that bring what the rows accumulated before to their new maxima, and returns whether
// any is not 1.
template <int kColumns>
ATTN_DEVICE bool update_softmax(Sums<kColumns>& scores, float factor, RunningSoftmax& running,
                                float (&rescale)[2]) {
  bool rescales = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float most = -infinity();
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      most = fmaxf(most, fmaxf(scores.values[n][2 * r], scores.values[n][2 * r + 1]));
    }
    most = quad_maximum(most) * factor;
    rescale[r] = 1.0f;
    if (most > running.maximum[r] + kMaximumSlack) {
      rescale[r] = exp2_approximate(running.maximum[r] - most);
      running.maximum[r] = most;
      running.total[r] *= rescale[r];
      rescales = true;
    }
    // With nothing seen yet any finite reference serves: every probability is 2^-infinity, or NaN.
    const float reference = running.maximum[r] == -infinity() ? 0.0f : running.maximum[r];
    const auto each = [&](auto&& map) {
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) map(scores.values[n][2 * r + e]);
      }
    };
    float scale = factor;
    if (fabsf(reference) > kMostFused) {
      each([&](float& x) { x *= factor; });
      scale = 1.0f;
    }
    each([&](float& x) {
      x = exp2_approximate(fmaf(x, scale, -reference));
      running.total[r] += x;
    });
  }
  return rescales;
}

// What the end of a row's softmax gives.
struct FinishedRow {
  float factor;  // by which what was accumulated is multiplied
  float lse;     // natural
};

// Ends row r; `sink` is a logit in base 2 that carries no value, or -infinity. The quad's lanes get
// the same.
ATTN_DEVICE FinishedRow finish_softmax(const RunningSoftmax& running, int r, float sink) {
  constexpr float kLn2 = 0.6931471805599453f;
  float maximum = running.maximum[r], total = quad_sum(running.total[r]), factor = 1.0f;
  if (sink > -infinity()) {
    const float most = fmaxf(maximum, sink);
    factor = exp2_approximate(maximum - most);
    total = total * factor + exp2_approximate(sink - most);
    maximum = most;
  }
  if (total == 0.0f) return {0.0f, -infinity()};
  return {factor / total, (maximum + log2f(total)) * kLn2};
}

}  // namespace attn::cuda
