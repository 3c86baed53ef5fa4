// Rows of positions' features and tables as operands of matrix products, read where they lie: a
// tile meets few of them, and each from a place of its own.
//
// Whatever they hold is multiplied as TF32, which bfloat16 and float16 are exactly; float32 is
// split in two numbers.
#pragma once

#include "cuda/device/products.cuh"
#include "cuda/device/row_format.cuh"
#include "cuda/device/sequences.cuh"

namespace attn::cuda {

// The row of its table that a distance reads by row `row` of those that distances have, or by the
// nearest of them. No host has seen the places.
ATTN_DEVICE int64_t place_of(const PositionTerm& term, int64_t row) {
  const int64_t near = clamp(row, 0, term.num_distances - 1);
  return term.table_row_of ? clamp(term.table_row_of[near], 0, term.num_table_rows - 1) : near;
}

// Numbers of a left operand's rows g and g + 8, of two columns, as mma.m16n8k8 has them. `splits`:
// some operand is no TF32 number, and is not to be rounded to one.
ATTN_DEVICE LeftFragment<float> left_of_floats(float low, float high, float next_low,
                                               float next_high, bool splits) {
  const uint32_t bits[4] = {__builtin_bit_cast(uint32_t, low), __builtin_bit_cast(uint32_t, high),
                            __builtin_bit_cast(uint32_t, next_low),
                            __builtin_bit_cast(uint32_t, next_high)};
  return LeftFragment<float>(bits, splits);
}

// Rows g and g + 8 of a left operand, four numbers of each, against as many of right ones. Both
// sides have them in an order that suits loading.
struct PositionFragments {
  LeftFragment<float> left[2];

  ATTN_DEVICE PositionFragments(const float (&low)[4], const float (&high)[4], bool splits)
      : left{of(low, high, 0, splits), of(low, high, 2, splits)} {}

  // kSwapped: as in LeftFragment.
  template <bool kSwapped>
  ATTN_DEVICE void multiply(float (&sums)[4], const float (&right)[4]) const {
    uint32_t b[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = __builtin_bit_cast(uint32_t, right[i]);
    add_products<kSwapped>(sums, left, b);
  }

 private:
  ATTN_DEVICE static LeftFragment<float> of(const float (&low)[4], const float (&high)[4], int c,
                                            bool splits) {
    return left_of_floats(low[c], high[c], low[c + 1], high[c + 1], splits);
  }
};

}  // namespace attn::cuda
