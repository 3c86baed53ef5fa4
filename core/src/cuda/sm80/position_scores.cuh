// What relative positions add to scores, for the 16 rows of a warp and 16 columns at a time.
//
// Each of 16 lines, the rows or the columns of such a square, reaches 16 of 31 rows of the table:
// the lines' features are multiplied with all of them, and each line finds its scores one place
// further on than the line before. Source: Dai et al. 2019, arXiv:1901.02860, appendix B.
#pragma once

#include "cuda/device/shuffle.cuh"
#include "cuda/sm80/position_rows.cuh"

namespace attn::cuda {

// Whose rows a tile has.
enum class Side { kQueries, kKeys };

constexpr int kSquare = 16;

// Two fragments of eight columns: the scores of a square.
using SquareScores = float[2][4];

// Row k of the table for a square whose diagonal meets row `middle`, of those that distances have;
// `step` is 1 or -1.
ATTN_DEVICE const char* table_row(const PositionTerm& term, int h, int64_t middle, int step,
                                  int k) {
  return term.table.row(0, place_of(term, middle + step * (k - kSquare + 1)), h);
}

// Products of rows with rows of the table, [16, 32], which row r reads from column 15 - r on.
ATTN_DEVICE void add_along_rows(SquareScores& scores, const float (&products)[4][4], float factor) {
  const int g = lane() / 4, t = lane() % 4, shift = 7 - g;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        // A lane gives what another one of its quad asks it for, of either of two fragments.
        const bool is_odd = (e + shift) % 2 == 1;
        const bool is_nearer = 2 * t + is_odd >= e + shift;
        const float(&nearer)[4] = products[n + 1 - r];
        const float(&farther)[4] = products[n + 2 - r];
        const float even = is_nearer ? nearer[2 * r] : farther[2 * r];
        const float odd = is_nearer ? nearer[2 * r + 1] : farther[2 * r + 1];
        scores[n][2 * r + e] +=
            factor * shuffle(is_odd ? odd : even, 4 * g + (2 * t + e + shift) % 8 / 2);
      }
    }
  }
}

// Products of rows of the table with columns, [32, 16] as fragments [2][2] of 16 by 8, which column
// c reads from row 15 - c on.
ATTN_DEVICE void add_along_columns(SquareScores& scores, const float (&products)[4][4],
                                   float factor) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int shift = 7 - (2 * t + e), eighth = r - n + 1;
        const float nearer = products[eighth / 2 * 2 + n][eighth % 2 * 2 + e];
        const float farther = products[(eighth + 1) / 2 * 2 + n][(eighth + 1) % 2 * 2 + e];
        scores[n][2 * r + e] +=
            factor * shuffle(g >= shift ? nearer : farther, 4 * ((g + shift) % 8) + t);
      }
    }
  }
}

// Lines [first, ...) of `count`, which are the square's rows or its columns.
struct SquareLines {
  int first, count;

  // The features of the thread's `which`th line, or null.
  ATTN_DEVICE const char* features(const PositionTerm& term, int64_t b, int h, int which) const {
    const int line = first + lane() / 4 + 8 * which;
    return line < count ? term.features.row(b, line, h) : nullptr;
  }
};

// Products of 16 lines with the 32 rows of the table around those that they reach: with lines as
// rows [16, 32], else [32, 16], as four fragments of 16 by 8.
ATTN_DEVICE void multiply_lines(float (&products)[4][4], const PositionTerm& term, int64_t b, int h,
                                SquareLines lines, bool are_rows, int64_t middle, int step) {
  const RowFormat features(term.features, term.width), table(term.table, term.width);
  const bool splits = features.is_wide() || table.is_wide();
  const char* line_rows[2];
  const char* table_rows[4];
#pragma unroll
  for (int r = 0; r < 2; ++r) line_rows[r] = lines.features(term, b, h, r);
#pragma unroll
  for (int q = 0; q < 4; ++q) table_rows[q] = table_row(term, h, middle, step, lane() / 4 + 8 * q);
#pragma unroll
  for (int at = 0; at < 16; ++at) products[at / 4][at % 4] = 0.0f;
#pragma unroll 1
  for (int depth = 0; depth < features.width; depth += 16) {
    const int column = depth + lane() % 4 * 4;
    float line[2][4], reached[4][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) features.load(line[r], line_rows[r], column);
#pragma unroll
    for (int q = 0; q < 4; ++q) table.load(reached[q], table_rows[q], column);
    if (are_rows) {
      const PositionFragments left(line[0], line[1], splits);
#pragma unroll
      for (int q = 0; q < 4; ++q) left.multiply<false>(products[q], reached[q]);
    } else {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const PositionFragments left(reached[2 * m], reached[2 * m + 1], splits);
#pragma unroll
        for (int r = 0; r < 2; ++r) left.multiply<true>(products[2 * m + r], line[r]);
      }
    }
  }
}

// What positions add to the scores of query head h for rows and columns from `row` and `column` on,
// in base 2. Every lane of the warp joins; what lies outside the sequence is anything.
template <Side kRows>
ATTN_DEVICE void load_position_scores(SquareScores& scores, const Problem& p, const Sequence& s,
                                      int h, int row, int column) {
  constexpr bool kQueriesAreRows = kRows == Side::kQueries;
  const PositionTerm &queries = p.positions.of_queries, &keys = p.positions.of_keys;
  const SquareLines query_lines{kQueriesAreRows ? row : column, static_cast<int>(s.Mq)};
  const SquareLines key_lines{kQueriesAreRows ? column : row, static_cast<int>(s.Mkv)};
  const int64_t middle = p.positions.zero_row + key_lines.first - query_lines.first - s.diagonal;
  const float factor = static_cast<float>(p.scale) * kLog2E;
#pragma unroll
  for (int at = 0; at < 8; ++at) scores[at / 4][at % 4] = 0.0f;
#pragma unroll 1
  for (int side = 0; side < 2; ++side) {  // once each, for the code to be short
    const PositionTerm& term = side == 0 ? queries : keys;
    if (!term) continue;
    const bool are_rows = (side == 0) == kQueriesAreRows;
    float products[4][4];
    // Along a query keys are ever further on, along a key queries ever further back.
    multiply_lines(products, term, s.b, h, side == 0 ? query_lines : key_lines, are_rows, middle,
                   side == 0 ? 1 : -1);
    if (are_rows) {
      add_along_rows(scores, products, factor);
    } else {
      add_along_columns(scores, products, factor);
    }
  }
}

}  // namespace attn::cuda
