// Probabilities and score gradients of one tile, recomputed in registers.
//
// A tile has a stationary side, of which each warp keeps 16 rows, and a streamed one. With keys
// stationary it is transposed: then P^T and dS^T are left operands of dV = P^T dO and dK = dS^T Q
// as they stand; with queries stationary, dS is that of dQ = dS K. Source: Dao 2023,
// arXiv:2307.08691, algorithm 2.
#pragma once

#include "cuda/device/dropout.cuh"
#include "cuda/device/score_terms.cuh"
#include "cuda/device/sequence_rows.cuh"
#include "cuda/sm80/backward_arguments.h"
#include "cuda/sm80/position_scores.cuh"

namespace attn::cuda {

// What softmax's gradient needs of one query row: P = 2^((score - maximum) - rest), to base 2, and
// dS = P (dP - delta).
struct RowStatistics {
  float maximum, rest, delta;
};

// Indices [begin, end) of the streamed side.
struct Partners {
  int begin, end;
};

// The queries or keys that the band pairs row `index` of the stationary side with; none with -1.
template <Side kStationary>
ATTN_DEVICE Partners partners_of(const Sequence& s, int index) {
  if (index < 0) return {0, 0};
  const int64_t count = kStationary == Side::kQueries ? s.Mkv : s.Mq;
  const int64_t first = kStationary == Side::kQueries ? index + s.first : index - s.last + 1;
  const int64_t end = kStationary == Side::kQueries ? index + s.last : index - s.first + 1;
  const int64_t begin = clamp(first, 0, count);
  return {static_cast<int>(begin), static_cast<int>(clamp(end, begin, count))};
}

// What a tile is made of, besides its operands.
template <Side kStationary>
struct TilePlace {
  const Problem& problem;
  const RowsOfSequence& rows;  // of the stationary side
  int64_t first_row;           // where the stationary side lies
  int h;                       // the query head
  int streamed;                // the index of the first streamed row
  Partners partners[2];        // of the thread's two rows

  ATTN_DEVICE static int own_column(int n, int e) { return 8 * n + lane() % 4 * 2 + e % 2; }

  ATTN_DEVICE int query(int n, int e) const {
    return kStationary == Side::kQueries ? rows.index[e / 2] : streamed + own_column(n, e);
  }
  ATTN_DEVICE int key(int n, int e) const {
    return kStationary == Side::kQueries ? streamed + own_column(n, e) : rows.index[e / 2];
  }
  ATTN_DEVICE int64_t key_row(int n, int e) const {
    return kStationary == Side::kQueries ? key_row_of(problem, rows.sequence, key(n, e))
                                         : first_row + own_row(e / 2);
  }
  ATTN_DEVICE bool is_paired(int n, int e) const {
    const int index = streamed + own_column(n, e);
    return index >= partners[e / 2].begin && index < partners[e / 2].end;
  }
  // Of all the warp's rows and the `count` streamed ones. Every lane gets the same answer.
  ATTN_DEVICE bool pairs_any(int count) const {
    bool pairs = false;
    for (const Partners& own : partners)
      pairs |= own.begin < streamed + count && own.end > streamed;
    return any(pairs);
  }
  ATTN_DEVICE bool misses_any(int count) const {
    bool misses = false;
    for (const Partners& own : partners)
      misses |= own.begin > streamed || own.end < streamed + count;
    return any(misses);
  }
};

// Scales and masks of a call, to base 2.
struct ScoreFactors {
  float scale;
  float softcap;        // 0: none
  float scale_to_caps;  // of a product, to multiples of the cap

  ATTN_DEVICE explicit ScoreFactors(const Problem& p)
      : scale(static_cast<float>(p.scale) * kLog2E),
        softcap(static_cast<float>(p.softcap) * kLog2E),
        scale_to_caps(scale / softcap) {}
};

// kColumns streamed rows. First the products are put in, then they are turned into P and dS.
// kPositions: knows those too, which takes registers.
template <Side kStationary, int kColumns, bool kExtended, bool kPositions = false>
struct GradientTile {
  using Place = TilePlace<kStationary>;
  static constexpr int kBlocks = kColumns / 8;

  Sums<kColumns> probabilities;  // first query . key; at last P as the output saw it
  Sums<kColumns> grad_scores;    // first dO . value; at last dS

  // `statistics(n, e)` are those of the element's query row. kOfProducts: dS is that of the scaled
  // scores; else of the scores after their cap.
  template <bool kOfProducts, class Statistics>
  ATTN_DEVICE void differentiate(const Place& place, BlocksSeen blocks, Statistics&& statistics) {
    const ScoreFactors factors(place.problem);
    if constexpr (kExtended) {
      differentiate_extended<kOfProducts>(place, blocks, factors, statistics);
    } else if (place.misses_any(kColumns)) {
      differentiate_plain<true>(place, factors, statistics);
    } else {
      differentiate_plain<false>(place, factors, statistics);
    }
  }

  // What is added to each of the thread's scores; -infinity excludes one. In local memory, so that
  // the code that finds it is there once.
  ATTN_DEVICE static void load_terms(float (&terms)[4 * kBlocks], const Place& place,
                                     BlocksSeen blocks) {
    const ScoreTerms score_terms{place.problem, place.rows.sequence, place.h};
    const bool is_biased = place.problem.bias || place.problem.slopes || place.problem.table;
#pragma unroll 1
    for (int at = 0; at < 4 * kBlocks; ++at) {
      const int n = at / 4, e = at % 4;
      float term = -infinity();
      if (place.is_paired(n, e)) {
        const int i = place.query(n, e), j = place.key(n, e);
        const bool is_seen =
            blocks != BlocksSeen::kSome || sees_block(place.problem.blocks, place.h, i, j);
        if (is_seen) term = is_biased ? score_terms.bias(i, j, place.key_row(n, e)) : 0.0f;
      }
      terms[at] = term;
    }
    if constexpr (kPositions) {
      if (place.problem.positions) add_positions(terms, place);
    }
  }

  // The score, to base 2, less `maximum`. Without a bias it is rounded once, so that large scores
  // differ from their maximum as exactly as they can.
  ATTN_DEVICE static float score_above(float product, float term, float maximum,
                                       const ScoreFactors& factors, float& cap_slope) {
    cap_slope = 1.0f;
    if (term == -infinity()) return term;  // the product may be NaN
    if (factors.softcap > 0.0f) {
      const float t = tanh_accurate(product * factors.scale_to_caps);
      cap_slope = 1.0f - t * t;
      return fmaf(t, factors.softcap, term) - maximum;
    }
    return term == 0.0f ? fmaf(product, factors.scale, -maximum)
                        : fmaf(product, factors.scale, term) - maximum;
  }

 private:
  ATTN_DEVICE static void add_positions(float (&terms)[4 * kBlocks], const Place& place) {
    const int row = static_cast<int>(place.first_row) + warp_index() * kSquare;
#pragma unroll 1
    for (int column = 0; column < kColumns; column += kSquare) {
      SquareScores scores;
      load_position_scores<kStationary>(scores, place.problem, place.rows.sequence, place.h, row,
                                        place.streamed + column);
#pragma unroll
      for (int at = 0; at < 8; ++at) {
        float& term = terms[column / 2 + at];
        if (term != -infinity()) term += scores[at / 4][at % 4];
      }
    }
  }

  template <bool kMasked, class Statistics>
  ATTN_DEVICE void differentiate_plain(const Place& place, const ScoreFactors& factors,
                                       Statistics& statistics) {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowStatistics row = statistics(n, e);
        float& p = probabilities.values[n][e];
        float& grad = grad_scores.values[n][e];
        p = exp2_approximate(fmaf(p, factors.scale, -row.maximum) - row.rest);
        grad = p * (grad - row.delta);
        if (kMasked && !place.is_paired(n, e)) p = grad = 0.0f;
      }
    }
  }

  template <bool kOfProducts, class Statistics>
  ATTN_DEVICE void differentiate_extended(const Place& place, BlocksSeen blocks,
                                          const ScoreFactors& factors, Statistics& statistics) {
    float terms[4 * kBlocks];
    load_terms(terms, place, blocks);
    const uint32_t kept = kept_elements(place);
    const float keep_scale = static_cast<float>(place.problem.dropout.keep_scale);
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const RowStatistics row = statistics(n, e);
        const float term = terms[4 * n + e];
        const float keep = (kept >> (4 * n + e) & 1) != 0 ? keep_scale : 0.0f;
        float& p = probabilities.values[n][e];
        float& grad = grad_scores.values[n][e];
        float cap_slope;
        const float x = score_above(p, term, row.maximum, factors, cap_slope) - row.rest;
        p = exp2_approximate(x);
        grad = p * (grad * keep - row.delta);
        if (kOfProducts) grad *= cap_slope;
        p *= keep;
        if (term == -infinity()) p = grad = 0.0f;
      }
    }
  }

  // Bit 4 n + e says whether dropout keeps element (n, e).
  ATTN_DEVICE static uint32_t kept_elements(const Place& place) {
    const Dropout& dropout = place.problem.dropout;
    if (!dropout.enabled) return ~0u;
    const Sequence& s = place.rows.sequence;
    if constexpr (kStationary == Side::kQueries) {
      return kept_of_query_rows<kBlocks>(dropout, s.b, place.h, place.first_row + own_row(0),
                                         place.key(0, 0));
    } else {
      const int64_t first_key = place.first_row - s.k_begin;
      if (!s.pages && first_key % kDrawsPerCounter == 0) {
        return kept_of_key_rows<kBlocks>(dropout, s.b, place.h, s.q_begin + place.query(0, 0),
                                         static_cast<int>(first_key) + own_row(0));
      }
      uint32_t kept = 0;
#pragma unroll 1
      for (int at = 0; at < 4 * kBlocks; ++at) {
        const int n = at / 4, e = at % 4;
        const bool is_kept =
            place.is_paired(n, e) &&
            keeps_key(dropout, s.b, place.h, s.q_begin + place.query(n, e), place.key(n, e));
        kept |= static_cast<uint32_t>(is_kept) << at;
      }
      return kept;
    }
  }
};

}  // namespace attn::cuda
