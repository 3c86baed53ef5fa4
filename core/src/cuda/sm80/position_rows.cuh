// Rows of positions' features and tables as operands of matrix products, read where they lie: a
// tile meets few of them, and each from a place of its own.
//
// Whatever they hold is multiplied as TF32, which bfloat16 and float16 are exactly; float32 is
// split in two numbers.
#pragma once

#include "cuda/device/sequences.cuh"
#include "cuda/sm80/products.cuh"

namespace attn::cuda {

// The row of its table that a distance reads by row `row` of those that distances have, or by the
// nearest of them. No host has seen the places.
ATTN_DEVICE int64_t place_of(const PositionTerm& term, int64_t row) {
  const int64_t near = clamp(row, 0, term.rows - 1);
  return term.places ? clamp(term.places[near], 0, term.size - 1) : near;
}

// Four numbers at an address, of which `count` are there, the others 0.
template <class Number>
ATTN_DEVICE void read_four(Number (&x)[4], const char* at, int count) {
  struct alignas(4 * sizeof(Number)) Four {
    Number values[4];
  };
  if (count >= 4 && reinterpret_cast<uintptr_t>(at) % sizeof(Four) == 0) {
    const Four four = *reinterpret_cast<const Four*>(at);
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = four.values[c];
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c)
      x[c] = c < count ? reinterpret_cast<const Number*>(at)[c] : Number{};
  }
}

// How features, or the rows of a table, lie in memory.
struct PositionFormat {
  DType dtype;
  int width;

  ATTN_DEVICE PositionFormat(const HeadRows& rows, int64_t width)
      : dtype(rows.dtype), width(static_cast<int>(width)) {}

  ATTN_DEVICE bool is_wide() const { return dtype == DType::kFloat32; }

  // Four numbers from `column` on; zeros beyond the width, and of no row.
  ATTN_DEVICE void load(float (&x)[4], const char* row, int column) const {
    const int count = row ? width - column : 0;
    const char* at = row + column * element_bytes(dtype);
    if (is_wide()) return read_four<float>(x, at, count);
    uint16_t bits[4];
    read_four<uint16_t>(bits, at, count);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      x[c] = dtype == DType::kBFloat16 ? to_float(BFloat16{bits[c]}) : to_float(Half{bits[c]});
    }
  }
};

// Numbers of a left operand's rows g and g + 8, of two columns, as mma.m16n8k8 has them.
ATTN_DEVICE LeftFragment<float> left_of_floats(float low, float high, float next_low,
                                               float next_high) {
  const uint32_t bits[4] = {__builtin_bit_cast(uint32_t, low), __builtin_bit_cast(uint32_t, high),
                            __builtin_bit_cast(uint32_t, next_low),
                            __builtin_bit_cast(uint32_t, next_high)};
  return LeftFragment<float>(bits);
}

// Adds the products with two numbers of the right operand's row g. `splits`: some operand is no
// TF32 number, and is not to be rounded to one. kSwapped: as in LeftFragment.
template <bool kSwapped>
ATTN_DEVICE void multiply_positions(float (&sums)[4], const LeftFragment<float>& left, float right,
                                    float next_right, bool splits) {
  const uint32_t b[2] = {__builtin_bit_cast(uint32_t, right),
                         __builtin_bit_cast(uint32_t, next_right)};
  if (splits) return left.multiply<kSwapped>(sums, b);
  multiply_accumulate_tf32(sums, left.a.large, b);
}

// Rows g and g + 8 of a left operand, four numbers of each, against as many of right ones. Both
// sides have them in an order that suits loading.
struct PositionFragments {
  LeftFragment<float> first, second;
  bool splits;

  ATTN_DEVICE PositionFragments(const float (&low)[4], const float (&high)[4], bool splits)
      : first(of(low, high, 0)), second(of(low, high, 2)), splits(splits) {}

  template <bool kSwapped>
  ATTN_DEVICE void multiply(float (&sums)[4], const float (&right)[4]) const {
    multiply_positions<kSwapped>(sums, first, right[0], right[1], splits);
    multiply_positions<kSwapped>(sums, second, right[2], right[3], splits);
  }

 private:
  ATTN_DEVICE static LeftFragment<float> of(const float (&low)[4], const float (&high)[4], int c) {
    return left_of_floats(low[c], high[c], low[c + 1], high[c + 1]);
  }
};

}  // namespace attn::cuda
