// Matrix products of packed operands by an instruction set's tile registers.
#pragma once

#include <cstdint>

#include "cpu/kernels/product-inl.h"

namespace attn::cpu {
namespace {

// A left operand's rows, two tiles of them at a time, row-major whatever they were.
template <class Op, bool kDepthMajor>
class LeftRows {
 public:
  using Unit = typename Op::Unit;
  static constexpr int64_t kMostUnits = 64;  // of depth at once, if they have to be turned

  const Unit* units = nullptr;
  int64_t stride = 0;

  // Rows [first, first + n) of the product's A, and `depth` units of it from `unit` on.
  void load(const Product<Op>& p, int64_t first, int64_t n, int64_t unit, int64_t depth) {
    if constexpr (kDepthMajor) {
      using S = typename Op::S;
      constexpr int W = S::kWidth;
      for (int64_t r = 0; r < n; r += W) {
        for (int64_t d = 0; d < depth; d += W) {
          typename S::Vec square[W];
          for (int l = 0; l < W; ++l) {
            square[l] =
                d + l < depth ? S::load(p.a + (unit + d + l) * p.a_stride + first + r) : S::set1(0);
          }
          S::transpose(square);
          for (int l = 0; l < W; ++l) S::store(turned_ + (r + l) * kMostUnits + d, square[l]);
        }
      }
      units = turned_;
      stride = kMostUnits;
    } else {
      units = p.a + first * p.a_stride + unit;
      stride = p.a_stride;
    }
  }

 private:
  alignas(64) Unit turned_[kDepthMajor ? 2 * Op::kTileRows * kMostUnits : 1];
};

// Two tiles of rows, or fewer, against all columns: `depth` units from `unit` on, which are whole
// tiles or less than one.
template <class Op, bool kLower>
void multiply_rows(const Product<Op>& p, const typename Op::Unit* a, int64_t a_stride, int64_t unit,
                   int64_t depth, typename Op::S::Real* c, bool accumulate) {
  const int64_t steps = larger(depth / Op::kTileUnits, 1);
  for (int64_t column = 0; column < p.columns; column += kPanel<Op>) {
    const int64_t width = panel_width<Op>(column, p.b_columns);
    const int64_t wanted = panel_width<Op>(column, p.columns);
    const typename Op::Unit* b = p.b + column * p.b_depth + width * (p.b_begin + unit);
    int64_t n = 0;
    for (; n + 2 * Op::kTileColumns <= wanted; n += 2 * Op::kTileColumns) {
      if (p.prefetcher) p.prefetcher->issue(kTilePairSlots);
      Op::template multiply_tiles<kLower, true>(a, a_stride, b + n, width, steps, c + column + n,
                                                p.c_stride, accumulate);
    }
    if (n < wanted) {
      Op::template multiply_tiles<kLower, false>(a, a_stride, b + n, width, steps, c + column + n,
                                                 p.c_stride, accumulate);
    }
  }
}

// A row's sums are the same whatever other rows there are: whole tiles of depth in order, then
// what is left of it.
template <class Op, bool kDepthMajor>
void multiply_by_tiles(const Product<Op>& p, typename Op::Registers& registers) {
  using Left = LeftRows<Op, kDepthMajor>;
  Left left;
  for (int64_t unit = 0; unit < p.depth;) {
    const int64_t rest = p.depth - unit;
    const int64_t depth = rest < Op::kTileUnits ? rest
                          : kDepthMajor
                              ? smaller(rest, Left::kMostUnits) / Op::kTileUnits * Op::kTileUnits
                              : rest / Op::kTileUnits * Op::kTileUnits;
    const bool accumulate = p.accumulate || unit > 0;
    for (int64_t r = 0; r < p.rows; r += 2 * Op::kTileRows) {
      const int64_t rows = smaller(p.rows - r, 2 * Op::kTileRows);
      registers.configure(smaller(rows, Op::kTileRows), larger(rows - Op::kTileRows, 1),
                          smaller(depth, Op::kTileUnits));
      left.load(p, r, rows, unit, depth);
      const auto multiply =
          rows > Op::kTileRows ? multiply_rows<Op, true> : multiply_rows<Op, false>;
      multiply(p, left.units, left.stride, unit, depth, p.c + r * p.c_stride, accumulate);
    }
    unit += depth;
  }
}

// One tile's depth of one panel of a right operand: its finite numbers, and the others apart.
template <class Op>
struct PanelSlice {
  using S = typename Op::S;
  using Unit = typename Op::Unit;
  alignas(64) Unit finite[Op::kTileUnits * kPanel<Op>];
  alignas(64) Unit others[Op::kTileUnits * kPanel<Op>];
  bool has_others[Op::kTileUnits];  // by unit of depth

  // `depth` rows of `width` units, one after the other.
  void split(const Unit* b, int64_t depth, int64_t width) {
    for (int64_t d = 0; d < depth; ++d) {
      auto flag = Op::no_flag();
      for (int64_t n = d * width; n < (d + 1) * width; n += S::kWidth) {
        const auto v = S::load(b + n);
        flag = Op::flag_nonfinite(flag, v);
        S::store(finite + n, Op::finite_elements(v));
        S::store(others + n, Op::nonfinite_elements(v));
      }
      has_others[d] = Op::is_set(flag);
    }
  }
};

// Adds what the numbers that are not finite make of one row of A: 0 where that is 0.
template <class Op>
void add_nonfinite(const PanelSlice<Op>& slice, const typename Op::Unit* a, int64_t a_stride,
                   int64_t depth, int64_t width, int64_t wanted, typename Op::S::Real* c) {
  using S = typename Op::S;
  for (int64_t d = 0; d < depth; ++d) {
    if (!slice.has_others[d]) continue;
    const typename Op::Unit* factor = a + d * a_stride;
    for (int64_t n = 0; n < wanted; n += S::kWidth) {
      const auto column = Op::zero_where_zero(factor, S::load(slice.others + d * width + n));
      S::store(c + n, Op::dot(S::load(c + n), S::set1(*factor), column));
    }
  }
}

// The same sums, leaving out every term whose left factor is 0: those of finite numbers first, a
// tile's depth at a time.
template <class Op, bool kDepthMajor>
[[gnu::noinline]] void multiply_by_tiles_skipping_zeros(const Product<Op>& p,
                                                        typename Op::Registers& registers) {
  PanelSlice<Op> slice;
  for (int64_t unit = 0; unit < p.depth; unit += Op::kTileUnits) {
    const int64_t depth = smaller(p.depth - unit, Op::kTileUnits);
    for (int64_t column = 0; column < p.columns; column += kPanel<Op>) {
      const int64_t width = panel_width<Op>(column, p.b_columns);
      const int64_t wanted = panel_width<Op>(column, p.columns);
      slice.split(p.b + column * p.b_depth + width * (p.b_begin + unit), depth, width);
      Product<Op> part = p;
      part.a += unit * (kDepthMajor ? p.a_stride : 1);
      part.b = slice.finite;
      part.b_begin = 0;
      part.b_depth = part.depth = depth;
      part.c += column;
      part.b_columns = width;
      part.columns = wanted;
      part.accumulate = p.accumulate || unit > 0;
      multiply_by_tiles<Op, kDepthMajor>(part, registers);
      for (int64_t r = 0; r < p.rows && !p.only_finite; ++r) {
        add_nonfinite(slice, part.a + (kDepthMajor ? r : r * p.a_stride),
                      kDepthMajor ? p.a_stride : 1, depth, width, wanted, part.c + r * p.c_stride);
      }
    }
  }
}

}  // namespace
}  // namespace attn::cpu
