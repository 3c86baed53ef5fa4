// Reals as sums of bfloat16 pieces, whose products AMX multiplies: three pieces are a float32 to
// the bit, two a float16.
// Source: Henry, Tang and Heinecke 2019, arXiv:1904.06376, section II.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels/operand-inl.h"
#include "cpu/simd/bfloat16_pairs_avx512.h"
#include "cpu/simd/tile_registers_amx.h"
#include "cpu/simd/vec_avx512.h"

namespace attn::cpu {
namespace {

// What is packed is units of pieces; a computed left operand is Reals until it is multiplied. Unit
// u of a step of depth pairs its elements u and u + kTileUnits.
template <int kPieceCount>
struct SplitTiles : SingleOperand<VecAvx512> {
  using Registers = TileRegisters;
  static constexpr int kPieces = kPieceCount;
  static constexpr int64_t kTileRows = Tiles::kRows;
  static constexpr int64_t kTileColumns = Tiles::kColumns;
  static constexpr int64_t kTileUnits = Tiles::kUnits;
  static constexpr int64_t kStepDepth = 2 * kTileUnits;  // elements

  struct Pieces {
    Vec units[kPieces];  // from the largest piece to the smallest
  };

  // Cutting into two pieces loses more than the rough exponential does.
  static Vec exp2(Vec x) { return kPieces == 2 ? S::rough_exp2(x) : S::exp2(x); }

  // The units that pair the lanes of two vectors. The largest piece is cut off rather than rounded,
  // which cannot overflow; the last one is the nearest. An infinity's second piece is NaN.
  static Pieces split(Vec first, Vec second) { return split_after<1>(first, second); }

  // The same for what is packed: what is not finite is whole in the first piece. Of two pieces both
  // are rounded: products of second ones that are left out have either sign and do not add up.
  static Pieces split_packed(Vec first, Vec second) {
    const __mmask16 first_others = nonfinite(first), second_others = nonfinite(second);
    if ((first_others | second_others) == 0) [[likely]]
      return split_after<0>(first, second);
    const Vec zero = S::set1(0);
    Pieces pieces = split_after<0>(_mm512_mask_mov_ps(first, first_others, zero),
                                   _mm512_mask_mov_ps(second, second_others, zero));
    const Vec others = pair(_mm512_maskz_mov_ps(first_others, quiet(first)),
                            _mm512_maskz_mov_ps(second_others, quiet(second)));
    pieces.units[0] = _mm512_or_ps(pieces.units[0], others);
    return pieces;
  }

  // The finite elements of units, and 0; those that are not, and 0.
  static Vec finite_elements(Vec units) { return BFloat16Pairs::finite_elements(units); }
  static Vec nonfinite_elements(Vec units) { return BFloat16Pairs::nonfinite_elements(units); }
  static Vec first_of_pairs(Vec units) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(units), 16));
  }
  static Vec second_of_pairs(Vec units) { return cut(units); }

  // C = A B over `steps` of depth. A row of B has the pieces of `columns` units one after the
  // other. kTurned: rounds as B A would. Of two pieces the product of the second ones is wanted
  // where A is as exact as they are.
  template <bool kLower, bool kRight, bool kTurned, class Left>
  static void multiply_tiles(const Left& a, const Unit* b, int64_t columns, int64_t steps, float* c,
                             int64_t c_stride) {
    using Sums = TileSums<kLower, kRight>;
    const auto load_a = [&]<int kPiece>(int64_t step) {
      Sums::load_left(a.units + (step * kPieces + kPiece) * a.piece_stride, a.row_stride);
    };
    const auto load_b = [&]<int kPiece>(int64_t step) {
      Sums::load_right(b + (step * kTileUnits * kPieces + kPiece) * columns, kPieces * columns);
    };
    const auto load_first = [&]<int kPiece>(int64_t step) {
      if constexpr (kTurned) load_b.template operator()<kPiece>(step);
      if constexpr (!kTurned) load_a.template operator()<kPiece>(step);
    };
    const auto load_second = [&]<int kPiece>(int64_t step) {
      if constexpr (kTurned) load_a.template operator()<kPiece>(step);
      if constexpr (!kTurned) load_b.template operator()<kPiece>(step);
    };
    Sums::begin(c, c_stride, false);
    // Small products first: added to large ones, each would be rounded as these are.
    for (int64_t step = 0; step < steps; ++step) {
      load_first.template operator()<0>(step);
      load_second.template operator()<kPieces - 1>(step);
      Sums::add_products();
      if constexpr (kPieces == 3) {
        load_second.template operator()<1>(step);
        Sums::add_products();
      }
      load_first.template operator()<1>(step);
      if (kPieces == 3 || a.is_packed) Sums::add_products();
      load_second.template operator()<0>(step);
      Sums::add_products();
      if constexpr (kPieces == 3) {
        load_first.template operator()<2>(step);
        Sums::add_products();
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      load_first.template operator()<0>(step);
      load_second.template operator()<0>(step);
      Sums::add_products();
    }
    Sums::store(c, c_stride);
  }

 private:
  // Of two pieces those from kRounded on are rounded.
  template <int kRounded>
  [[gnu::always_inline]] static Pieces split_after(Vec first, Vec second) {
    Pieces pieces;
#pragma GCC unroll 3
    for (int piece = 0; piece < kPieces; ++piece) {
      const bool rounds = kPieces == 2 && piece >= kRounded;
      const Vec a = rounds ? rounded(first) : first, b = rounds ? rounded(second) : second;
      pieces.units[piece] = pair(a, b);
      first = S::sub(first, cut(a)), second = S::sub(second, cut(b));
    }
    return pieces;
  }

  static constexpr int kHighHalf = static_cast<int>(0xffff0000);

  // Cut, this is the nearest number of 16 bits; NaN that lacks a bit there has one after the first
  // piece was taken away.
  static Vec rounded(Vec v) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000)));
  }
  // The upper half of the bits.
  static Vec cut(Vec v) {
    const __m512i mask = _mm512_set1_epi32(kHighHalf);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask));
  }
  static Vec pair(Vec first, Vec second) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(cut(second))));
  }

  static __mmask16 nonfinite(Vec v) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    return _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(v), exponent), exponent);
  }
  // A NaN may have no bit set in the upper half: it gets one.
  static Vec quiet(Vec v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_castsi512_ps(
        _mm512_mask_or_epi32(bits, is_nan, bits, _mm512_set1_epi32(0x00400000)));
  }
};

}  // namespace
}  // namespace attn::cpu
