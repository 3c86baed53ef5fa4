// Matrix products by tile registers of Reals in bfloat16 pieces: what was packed is in pieces, a
// computed left operand is cut into them here.
#pragma once

#include <cstdint>

#include "cpu/kernels/product-inl.h"

namespace attn::cpu {
namespace {

constexpr int64_t kMostSteps = 4;  // of depth that are multiplied at once

// A left operand in pieces, those of a step of depth one after the other.
template <class Op>
struct LeftTiles {
  const typename Op::Unit* units;
  int64_t row_stride, piece_stride;  // in units
  bool is_packed;

  LeftTiles from(int64_t row, int64_t step) const {
    return {units + row * row_stride + step * Op::kPieces * piece_stride, row_stride, piece_stride,
            is_packed};
  }
};

// Some steps of the depth of one panel of a right operand.
template <class Op>
struct PanelOfPieces {
  const typename Op::Unit* units;
  int64_t steps;
  int64_t width, wanted;  // columns
};

// Elements [begin, begin + n) of a left operand's depth. `lead` elements of B come before them in
// the first step: 0 unless A is [depth][rows].
struct DepthPart {
  int64_t begin, n, lead;
};

// Two tiles of rows of a left operand of Reals, cut into pieces.
template <class Op, bool kDepthMajor>
class LeftPieces {
 public:
  using S = typename Op::S;
  using Unit = typename Op::Unit;

  LeftTiles<Op> tiles() const { return {units_, Op::kTileUnits, kRows * Op::kTileUnits, false}; }

  // Rows [first, first + n) of the product's A, and some of their depth.
  void load(const Product<Op>& p, int64_t first, int64_t n, const DepthPart& part) {
    for (int64_t d = 0; d < part.lead + part.n; d += Op::kStepDepth) {
      const int64_t begin = part.begin - part.lead + d;
      const int64_t rest = part.lead + part.n - d;
      if constexpr (kDepthMajor) {
        const KeyRange there{larger(part.lead - d, 0), rest};
        const Unit* at = p.a + begin * p.a_stride + first;
        for (int64_t r = 0; r < n; r += S::kWidth) turn(at + r, p.a_stride, r, d, there);
      } else {
        const Unit* at = p.a + first * p.a_stride + begin;
        for (int64_t r = 0; r < n; ++r) {
          const Unit* row = at + r * p.a_stride;
          store(r, d, load_vector(row, rest), load_vector(row + S::kWidth, rest - S::kWidth));
        }
      }
    }
  }

 private:
  using Vec = typename S::Vec;
  static constexpr int64_t kRows = 2 * Op::kTileRows;

  // What lies beyond the depth may be anything.
  static Vec load_vector(const Unit* at, int64_t rest) {
    if (rest >= S::kWidth) return S::load(at);
    if (rest <= 0) return S::set1(0);
    return load_elements<S, DType::kFloat32>(reinterpret_cast<const char*>(at), 0, rest);
  }

  // Rows [r, r + kWidth) over a step of depth, whose elements lie `stride` units apart; those that
  // are not `there` count as 0.
  void turn(const Unit* at, int64_t stride, int64_t r, int64_t d, KeyRange there) {
    constexpr int W = S::kWidth;
    const auto load = [&](int64_t u) {
      return there.begin <= u && u < there.end ? S::load(at + u * stride) : S::set1(0);
    };
    Vec first[W], second[W];
    for (int l = 0; l < W; ++l) first[l] = load(l), second[l] = load(W + l);
    S::transpose(first);
    S::transpose(second);
    for (int l = 0; l < W; ++l) store(r + l, d, first[l], second[l]);
  }

  void store(int64_t r, int64_t d, Vec first, Vec second) {
    const auto pieces = Op::split(first, second);
    Unit* at = units_ + (d / Op::kStepDepth * Op::kPieces * kRows + r) * Op::kTileUnits;
#pragma GCC unroll 3
    for (int piece = 0; piece < Op::kPieces; ++piece) {
      S::store(at + piece * kRows * Op::kTileUnits, pieces.units[piece]);
    }
  }

  // [steps][kPieces][kRows][kTileUnits]
  alignas(64) Unit units_[kMostSteps * Op::kPieces * kRows * Op::kTileUnits];
};

// Adds rows of `width` sums; sums of sums round less than one long sum.
template <class S>
void add_sums(typename S::Real* c, int64_t c_stride, const typename S::Real* sums, int64_t rows,
              int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < width; n += S::kWidth) {
      typename S::Real* at = c + r * c_stride + n;
      S::store(at, S::add(S::load(at), S::load(sums + r * width + n)));
    }
  }
}

// Two tiles of rows in pieces, or fewer, against one panel.
template <class Op, bool kLower, bool kTurned>
void multiply_panel_of_pieces(const LeftTiles<Op>& a, const PanelOfPieces<Op>& b, int64_t rows,
                              typename Op::S::Real* c, int64_t c_stride, bool accumulate) {
  const auto multiply = [&]<bool kRight>(int64_t n) {
    constexpr int64_t kWidth = (kRight ? 2 : 1) * Op::kTileColumns;
    const auto to = [&](typename Op::S::Real* sums, int64_t stride) {
      Op::template multiply_tiles<kLower, kRight, kTurned>(a, b.units + n, b.width, b.steps, sums,
                                                           stride);
    };
    if (!accumulate) return to(c + n, c_stride);
    alignas(64) typename Op::S::Real sums[2 * Op::kTileRows * kWidth];
    to(sums, kWidth);
    add_sums<typename Op::S>(c + n, c_stride, sums, rows, kWidth);
  };
  int64_t n = 0;
  for (; n + 2 * Op::kTileColumns <= b.wanted; n += 2 * Op::kTileColumns) {
    multiply.template operator()<true>(n);
  }
  if (n < b.wanted) multiply.template operator()<false>(n);
}

// A panel without its numbers that are not finite.
template <class Op>
class FinitePanel {
 public:
  using S = typename Op::S;

  explicit FinitePanel(const PanelOfPieces<Op>& b) : panel_(b) {
    const int64_t rows = b.steps * Op::kTileUnits * Op::kPieces;
    for (int64_t at = 0; at < rows * b.width; at += S::kWidth) {
      S::store(units_ + at, Op::finite_elements(S::load(b.units + at)));
    }
    panel_.units = units_;
  }
  const PanelOfPieces<Op>& panel() const { return panel_; }

 private:
  PanelOfPieces<Op> panel_;
  alignas(64) typename Op::Unit units_[kMostSteps * Op::kTileUnits * Op::kPieces * kPanel<Op>];
};

// sum + factor * number where the number is not finite: those that are have been made 0.
template <class Op>
typename Op::Vec add_nonfinite(typename Op::Vec sum, typename Op::Vec factor,
                               typename Op::Vec number, bool skip_zeros) {
  using S = typename Op::S;
  const auto zero = S::set1(0);
  const auto added = S::select(S::equal(number, zero), sum, S::fma(factor, number, sum));
  return skip_zeros ? S::select(S::equal(factor, zero), sum, added) : added;
}

// Adds what the numbers of a panel that are not finite make of one row of A: the largest pieces of
// both tell all that matters.
template <class Op>
void add_nonfinite_pieces(const LeftTiles<Op>& a, const PanelOfPieces<Op>& b, bool skip_zeros,
                          typename Op::S::Real* c) {
  using S = typename Op::S;
  for (int64_t u = 0; u < b.steps * Op::kTileUnits; ++u) {
    const auto factors = S::set1(a.from(0, u / Op::kTileUnits).units[u % Op::kTileUnits]);
    const auto first = Op::first_of_pairs(factors), second = Op::second_of_pairs(factors);
    for (int64_t n = 0; n < b.wanted; n += S::kWidth) {
      const auto numbers = Op::nonfinite_elements(S::load(b.units + u * Op::kPieces * b.width + n));
      auto sum = S::load(c + n);
      sum = add_nonfinite<Op>(sum, first, Op::first_of_pairs(numbers), skip_zeros);
      sum = add_nonfinite<Op>(sum, second, Op::second_of_pairs(numbers), skip_zeros);
      S::store(c + n, sum);
    }
  }
}

// Rows [r, r + 2 kTileRows) of the product, as far as there are, over some of their depth.
template <class Op>
void multiply_rows_in_pieces(const Product<Op>& p, const LeftTiles<Op>& a, int64_t r, int64_t rows,
                             const DepthPart& part) {
  const bool accumulate = p.accumulate || part.begin > 0;
  const bool has_lower = rows > Op::kTileRows;
  const auto multiply = p.is_turned ? has_lower ? multiply_panel_of_pieces<Op, true, true>
                                                : multiply_panel_of_pieces<Op, false, true>
                        : has_lower ? multiply_panel_of_pieces<Op, true, false>
                                    : multiply_panel_of_pieces<Op, false, false>;
  for (int64_t column = 0; column < p.columns; column += kPanel<Op>) {
    const int64_t width = panel_width<Op>(column, p.b_columns);
    const PanelOfPieces<Op> b{.units = p.b + column * column_units<Op>(p.b_depth) +
                                       width * column_units<Op>(p.b_begin + part.begin - part.lead),
                              .steps = (part.lead + part.n + Op::kStepDepth - 1) / Op::kStepDepth,
                              .width = width,
                              .wanted = panel_width<Op>(column, p.columns)};
    typename Op::S::Real* c = p.c + r * p.c_stride + column;
    if (p.is_finite) {
      multiply(a, b, rows, c, p.c_stride, accumulate);
      continue;
    }
    multiply(a, FinitePanel<Op>(b).panel(), rows, c, p.c_stride, accumulate);
    for (int64_t row = 0; row < rows; ++row) {
      add_nonfinite_pieces(a.from(row, 0), b, p.skip_zeros, c + row * p.c_stride);
    }
  }
}

// A row's sums are the same whatever other rows there are, and whatever is not finite: a part ends
// where that of a product with all of B's depth would.
template <class Op, bool kDepthMajor>
void multiply_in_pieces(const Product<Op>& p, typename Op::Registers& registers) {
  LeftPieces<Op, kDepthMajor> computed;
  const LeftTiles<Op> packed{p.a, p.a_stride, Op::kTileUnits, true};
  for (int64_t r = 0; r < p.rows; r += 2 * Op::kTileRows) {
    const int64_t rows = smaller(p.rows - r, 2 * Op::kTileRows);
    registers.configure(smaller(rows, Op::kTileRows), larger(rows - Op::kTileRows, 1),
                        Op::kTileUnits);
    for (int64_t begin = 0; begin < p.depth;) {
      constexpr int64_t kMost = kMostSteps * Op::kStepDepth;
      const int64_t at = p.b_begin + begin;
      const DepthPart part{.begin = begin,
                           .n = smaller(p.depth - begin, kMost - at % kMost),
                           .lead = at % Op::kStepDepth};
      if (!p.a_is_packed) computed.load(p, r, rows, part);
      const LeftTiles<Op> a =
          p.a_is_packed ? packed.from(r, begin / Op::kStepDepth) : computed.tiles();
      multiply_rows_in_pieces(p, a, r, rows, part);
      begin += part.n;
    }
  }
}

}  // namespace
}  // namespace attn::cpu
