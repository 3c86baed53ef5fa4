// Matrix products of packed operands: C += A B in register tiles.
#pragma once

#include <cstdint>

#include "cpu/kernels/multiply_pieces-inl.h"
#include "cpu/kernels/multiply_tiles-inl.h"
#include "cpu/kernels/product-inl.h"

namespace attn::cpu {
namespace {

// A is [rows][depth], or [depth][rows] if kDepthMajor.
template <class Op, bool kDepthMajor, int kRows, int kVectors>
inline void multiply_tile(const typename Op::Unit* a, int64_t a_stride, const typename Op::Unit* b,
                          int64_t b_stride, int64_t depth, typename Op::S::Real* c,
                          int64_t c_stride, bool accumulate) {
  using S = typename Op::S;
  using Vec = typename S::Vec;
  constexpr int W = S::kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[r][v] = S::set1(0);
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec column[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) column[v] = S::load(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec row = S::set1(kDepthMajor ? a[r] : a[r * a_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Op::dot(sum[r][v], row, column[v]);
    }
    a += kDepthMajor ? a_stride : 1;
    b += b_stride;
  }
  if (accumulate) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = S::add(S::load(c + r * c_stride + v * W), sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) S::store(c + r * c_stride + v * W, sum[r][v]);
  }
}

// One panel of B for all rows of A: full tiles, then one tile of the rows that are left.
template <class Op, bool kDepthMajor, int kVectors, int kRows = Op::kTileRows>
void multiply_panel(const Product<Op>& p, const typename Op::Unit* b, int64_t b_stride,
                    typename Op::S::Real* c, int64_t first_row = 0) {
  int64_t r = first_row;
  for (; r + kRows <= p.rows; r += kRows) {
    multiply_tile<Op, kDepthMajor, kRows, kVectors>(p.a + (kDepthMajor ? r : r * p.a_stride),
                                                    p.a_stride, b, b_stride, p.depth,
                                                    c + r * p.c_stride, p.c_stride, p.accumulate);
  }
  if constexpr (kRows > 1) {
    if (r < p.rows) multiply_panel<Op, kDepthMajor, kVectors, kRows - 1>(p, b, b_stride, c, r);
  }
}

template <class Op, bool kDepthMajor, int kVectors = Op::S::kTileVectors>
void multiply_panel_of(const Product<Op>& p, int64_t vectors, const typename Op::Unit* b,
                       int64_t b_stride, typename Op::S::Real* c) {
  if (vectors == kVectors) {
    multiply_panel<Op, kDepthMajor, kVectors>(p, b, b_stride, c);
  } else if constexpr (kVectors > 1) {
    multiply_panel_of<Op, kDepthMajor, kVectors - 1>(p, vectors, b, b_stride, c);
  }
}

// The same sums in the same order, to the bit, leaving out every term whose left factor is 0.
template <class Op, bool kDepthMajor>
[[gnu::noinline]] void multiply_panel_skipping_zeros(const Product<Op>& p, int64_t width,
                                                     const typename Op::Unit* b, int64_t b_stride,
                                                     typename Op::S::Real* c) {
  using S = typename Op::S;
  for (int64_t r = 0; r < p.rows; ++r) {
    const typename Op::Unit* a = p.a + (kDepthMajor ? r : r * p.a_stride);
    for (int64_t n = 0; n < width; n += S::kWidth) {
      typename S::Real* at = c + r * p.c_stride + n;
      auto sum = S::set1(0);
      for (int64_t d = 0; d < p.depth; ++d) {
        const typename Op::Unit* factor = a + d * (kDepthMajor ? p.a_stride : 1);
        const auto column = Op::zero_where_zero(factor, S::load(b + d * b_stride + n));
        sum = Op::dot(sum, S::set1(*factor), column);
      }
      S::store(at, p.accumulate ? S::add(S::load(at), sum) : sum);
    }
  }
}

// Units of depth that are summed by themselves: sums of sums round less than one long sum.
constexpr int64_t kDepthBlock = 256;

template <class Op, bool kDepthMajor = false>
void multiply_by_vectors(Product<Op> p) {
  const int64_t depth = p.depth;
  // Blocks end where those of a product with all of B's depth would: a row's sums are then the same
  // wherever its own part begins.
  for (int64_t d = 0; d < depth; d += p.depth) {
    p.depth = smaller(kDepthBlock - (p.b_begin + d) % kDepthBlock, depth - d);
    for (int64_t column = 0; column < p.columns; column += kPanel<Op>) {
      const int64_t width = panel_width<Op>(column, p.b_columns);
      const int64_t wanted = panel_width<Op>(column, p.columns);
      const typename Op::Unit* b = p.b + column * p.b_depth + width * (p.b_begin + d);
      if (p.skip_zeros && !p.is_finite) {
        multiply_panel_skipping_zeros<Op, kDepthMajor>(p, wanted, b, width, p.c + column);
      } else {
        multiply_panel_of<Op, kDepthMajor>(p, wanted / Op::S::kWidth, b, width, p.c + column);
      }
    }
    p.a += p.depth * (kDepthMajor ? p.a_stride : 1);
    p.accumulate = true;
  }
}

// `registers` are the task's.
template <class Op, bool kDepthMajor = false>
void multiply(const Product<Op>& p, typename Op::Registers& registers) {
  if constexpr (HasPieces<Op>) {
    multiply_in_pieces<Op, kDepthMajor>(p, registers);
  } else if constexpr (!HasTiles<Op>) {
    multiply_by_vectors<Op, kDepthMajor>(p);
  } else if (p.skip_zeros && !p.is_finite) {
    multiply_by_tiles_skipping_zeros<Op, kDepthMajor>(p, registers);
  } else {
    multiply_by_tiles<Op, kDepthMajor>(p, registers);
  }
}

}  // namespace
}  // namespace attn::cpu
