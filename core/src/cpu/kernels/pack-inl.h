// Copies rows of the inputs into the layouts the matrix multiplication reads.
//
// A left operand is row-major units. A right operand is column panels: panel p holds columns
// [p * kPanel, (p + 1) * kPanel) as [depth units][panel width], the last one only as wide as its
// columns need in whole vectors. Of an operand in pieces a panel is [depth units][pieces][panel
// width], and its depth whole steps. Each function returns whether every element was finite.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"
#include "cpu/kernels/operand-inl.h"
#include "cpu/kernels/prefetch-inl.h"

namespace attn::cpu {
namespace {

template <class Op>
constexpr int64_t kPanel = Op::S::kWidth * Op::S::kTileVectors;

template <class Op>
constexpr int64_t units_of(int64_t elements) {
  return (elements + Op::kDepth - 1) / Op::kDepth;
}

// Operands that multiply whole tiles rather than vectors.
template <class Op>
concept HasTiles = requires { Op::kTileUnits; };

// Operands whose packed Reals are in pieces.
template <class Op>
concept HasPieces = requires { Op::kPieces; };

constexpr int64_t kPackedAhead = 16;  // rows from the one packed to the one prefetched

// The elements of a row's step of depth from d on that are the second ones of its pairs.
template <class Op, DType kSource>
typename Op::Vec load_second_half(const char* row, int64_t d, int64_t width) {
  using S = typename Op::S;
  const int64_t second = d + Op::kTileUnits;
  return second < width ? load_elements<S, kSource>(row, second, width) : S::set1(0);
}

// Floats (Reals) that a column of a right operand of this depth occupies.
template <class Op>
constexpr int64_t column_units(int64_t depth_units) {
  if constexpr (HasPieces<Op>) {
    return round_up(depth_units, Op::kStepDepth) / 2 * Op::kPieces;
  } else {
    return depth_units;
  }
}

// Floats (Reals) that a right operand of this depth and number of columns occupies.
template <class Op>
constexpr int64_t panel_units(int64_t depth_units, int64_t columns) {
  return column_units<Op>(depth_units) * round_up(columns, Op::S::kWidth);
}

template <class Op>
constexpr int64_t panel_width(int64_t column, int64_t columns) {
  return smaller(kPanel<Op>, round_up(columns - column, Op::S::kWidth));
}

// Units of a packed row of a left operand.
template <class Op>
constexpr int64_t row_units(int64_t width) {
  if constexpr (HasPieces<Op>) {
    return column_units<Op>(width);
  } else {
    return round_up(units_of<Op>(width), Op::S::kWidth);
  }
}

// Left operand: n rows of `width` elements to n rows of `stride` units.
template <class Op, DType kSource>
bool pack_rows_from(typename Op::Unit* to, int64_t stride, const char* const* rows, int64_t n,
                    int64_t width) {
  using S = typename Op::S;
  auto flag = Op::no_flag();
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t u = 0; u < units_of<Op>(width); u += S::kWidth) {
      const auto v = Op::template load_units<kSource>(rows[r], u, width);
      flag = Op::flag_nonfinite(flag, v);
      S::store(to + r * stride + u, v);
    }
  }
  return !Op::is_set(flag);
}

// The same in pieces: a row is [steps of depth][pieces][kTileUnits].
template <class Op, DType kSource>
bool pack_rows_in_pieces(typename Op::Unit* to, int64_t stride, const char* const* rows, int64_t n,
                         int64_t width) {
  using S = typename Op::S;
  auto flag = Op::no_flag();
  for (int64_t r = 0; r < n; ++r) {
    typename Op::Unit* at = to + r * stride;
    for (int64_t d = 0; d < width; d += Op::kStepDepth) {
      const auto first = load_elements<S, kSource>(rows[r], d, width);
      const auto second = load_second_half<Op, kSource>(rows[r], d, width);
      flag = Op::flag_nonfinite(Op::flag_nonfinite(flag, first), second);
      for (const auto& piece : Op::split_packed(first, second).units) {
        S::store(at, piece);
        at += Op::kTileUnits;
      }
    }
  }
  return !Op::is_set(flag);
}

// Right operand whose columns are the n rows and whose depth is their width: the transpose.
template <class Op, DType kSource>
bool pack_transposed_from(typename Op::Unit* to, const char* const* rows, int64_t n,
                          int64_t width) {
  using S = typename Op::S;
  constexpr int W = S::kWidth;
  const int64_t depth = units_of<Op>(width);
  auto flag = Op::no_flag();
  for (int64_t c = 0; c < n; c += W) {
    const int64_t panel = c / kPanel<Op> * kPanel<Op>;
    const int64_t stride = panel_width<Op>(panel, n);
    typename Op::Unit* at = to + panel * depth + (c - panel);
    for (int64_t u = 0; u < depth; u += W) {
      typename S::Vec block[W];
      for (int r = 0; r < W; ++r) {
        prefetch_elements<kSource>(rows, c + r + kPackedAhead, n, u * Op::kDepth, W * Op::kDepth);
        block[r] = c + r < n ? Op::template load_units<kSource>(rows[c + r], u, width) : S::set1(0);
        flag = Op::flag_nonfinite(flag, block[r]);
      }
      S::transpose(block);
      const int64_t steps = smaller(W, depth - u);
      for (int64_t d = 0; d < steps; ++d) S::store(at + (u + d) * stride, block[d]);
    }
  }
  return !Op::is_set(flag);
}

// The same in pieces.
template <class Op, DType kSource>
bool pack_transposed_in_pieces(typename Op::Unit* to, const char* const* rows, int64_t n,
                               int64_t width) {
  using S = typename Op::S;
  constexpr int W = S::kWidth;
  auto flag = Op::no_flag();
  for (int64_t c = 0; c < n; c += W) {
    const int64_t panel = c / kPanel<Op> * kPanel<Op>;
    const int64_t stride = panel_width<Op>(panel, n);
    typename Op::Unit* at = to + panel * column_units<Op>(width) + (c - panel);
    for (int64_t d = 0; d < width; d += Op::kStepDepth) {
      typename S::Vec block[Op::kPieces][W];
      for (int r = 0; r < W; ++r) {
        prefetch_elements<kSource>(rows, c + r + kPackedAhead, n, d, Op::kStepDepth);
        auto first = S::set1(0), second = first;
        if (c + r < n) {
          first = load_elements<S, kSource>(rows[c + r], d, width);
          second = load_second_half<Op, kSource>(rows[c + r], d, width);
        }
        flag = Op::flag_nonfinite(Op::flag_nonfinite(flag, first), second);
        const auto pieces = Op::split_packed(first, second);
        for (int piece = 0; piece < Op::kPieces; ++piece) block[piece][r] = pieces.units[piece];
      }
      for (auto& square : block) S::transpose(square);
      for (int u = 0; u < W; ++u) {
        for (const auto& square : block) {
          S::store(at, square[u]);
          at += stride;
        }
      }
    }
  }
  return !Op::is_set(flag);
}

// Right operand whose depth is the n rows and whose columns are their width; only the rows of
// `part` are written, which begins at a whole unit and ends at one or with the last row. Before
// each unit's columns of a panel it calls prefetch(unit, first column, columns).
template <class Op, DType kSource, class F>
bool pack_stacked_from(typename Op::Unit* to, const char* const* rows, KeyRange part, int64_t n,
                       int64_t width, F&& prefetch) {
  using S = typename Op::S;
  const int64_t depth = units_of<Op>(n);
  auto flag = Op::no_flag();
  for (int64_t d = part.begin / Op::kDepth; d < units_of<Op>(part.end); ++d) {
    const char* const* step = rows + d * Op::kDepth;
    const int64_t present = n - d * Op::kDepth;
    for (int64_t panel = 0; panel < width; panel += kPanel<Op>) {
      const int64_t stride = panel_width<Op>(panel, width);
      typename Op::Unit* at = to + panel * depth;
      prefetch(d, panel, stride);
      int64_t c = 0;
      if constexpr (Op::kDepth == 2 && kSource == Op::kDType) {
        for (; present > 1 && panel + c + 2 * S::kWidth <= smaller(width, panel + stride);
             c += 2 * S::kWidth) {
          const auto [first, second] = Op::load_column_pairs(step, panel + c);
          flag = Op::flag_nonfinite(Op::flag_nonfinite(flag, first), second);
          S::store(at + d * stride + c, first);
          S::store(at + d * stride + c + S::kWidth, second);
        }
      }
      for (; c < stride; c += S::kWidth) {
        const auto v = panel + c < width
                           ? Op::template load_columns<kSource>(step, present, panel + c, width)
                           : S::set1(0);
        flag = Op::flag_nonfinite(flag, v);
        S::store(at + d * stride + c, v);
      }
    }
  }
  return !Op::is_set(flag);
}

// The same in pieces: `part` begins at a whole step of depth and ends at one or with the last row.
template <class Op, DType kSource>
bool pack_stacked_in_pieces(typename Op::Unit* to, const char* const* rows, KeyRange part,
                            int64_t n, int64_t width) {
  using S = typename Op::S;
  auto flag = Op::no_flag();
  const auto load = [&](int64_t row, int64_t column) {
    const auto v = row < n && column < width ? load_elements<S, kSource>(rows[row], column, width)
                                             : S::set1(0);
    flag = Op::flag_nonfinite(flag, v);
    return v;
  };
  for (int64_t panel = 0; panel < width; panel += kPanel<Op>) {
    const int64_t stride = panel_width<Op>(panel, width);
    typename Op::Unit* at =
        to + panel * column_units<Op>(n) + stride * column_units<Op>(part.begin);
    for (int64_t d = part.begin; d < part.end; d += Op::kStepDepth) {
      for (int64_t u = 0; u < Op::kTileUnits; ++u) {
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t ahead = d + u + half * Op::kTileUnits + Op::kStepDepth;
          prefetch_elements<kSource>(rows, ahead, part.end, panel, stride);
        }
        for (int64_t c = 0; c < stride; c += S::kWidth) {
          const auto pieces =
              Op::split_packed(load(d + u, panel + c), load(d + u + Op::kTileUnits, panel + c));
          for (int piece = 0; piece < Op::kPieces; ++piece) {
            S::store(at + piece * stride + c, pieces.units[piece]);
          }
        }
        at += Op::kPieces * stride;
      }
    }
  }
  return !Op::is_set(flag);
}

template <class Op>
bool pack_rows(typename Op::Unit* to, int64_t stride, const char* const* rows, DType dtype,
               int64_t n, int64_t width) {
  return with_source<Op>(dtype, [&]<DType kSource>() {
    if constexpr (HasPieces<Op>) {
      return pack_rows_in_pieces<Op, kSource>(to, stride, rows, n, width);
    } else {
      return pack_rows_from<Op, kSource>(to, stride, rows, n, width);
    }
  });
}

template <class Op>
bool pack_transposed(typename Op::Unit* to, const char* const* rows, DType dtype, int64_t n,
                     int64_t width) {
  return with_source<Op>(dtype, [&]<DType kSource>() {
    if constexpr (HasPieces<Op>) {
      return pack_transposed_in_pieces<Op, kSource>(to, rows, n, width);
    } else {
      return pack_transposed_from<Op, kSource>(to, rows, n, width);
    }
  });
}

template <class Op>
bool pack_stacked(typename Op::Unit* to, const char* const* rows, DType dtype, KeyRange part,
                  int64_t n, int64_t width) {
  return with_source<Op>(dtype, [&]<DType kSource>() {
    if constexpr (HasPieces<Op>) {
      return pack_stacked_in_pieces<Op, kSource>(to, rows, part, n, width);
    } else {
      return pack_stacked_from<Op, kSource>(
          to, rows, part, n, width, [&](int64_t unit, int64_t column, int64_t columns) {
            for (int64_t r = 0; r < Op::kDepth; ++r) {
              prefetch_elements<kSource>(rows, unit * Op::kDepth + r + kPackedAhead, part.end,
                                         column, columns);
            }
          });
    }
  });
}

template <class Op>
bool pack_stacked(typename Op::Unit* to, const char* const* rows, DType dtype, int64_t n,
                  int64_t width) {
  return pack_stacked<Op>(to, rows, dtype, {0, n}, n, width);
}

}  // namespace
}  // namespace attn::cpu
