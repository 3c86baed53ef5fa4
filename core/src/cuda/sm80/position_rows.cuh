// Rows of positions' features and tables as operands of matrix products, read where they lie: a
// tile meets few of them, and each from a place of its own.
//
// Whatever they hold is multiplied as TF32, which bfloat16 and float16 are exactly; float32 is
// split in two numbers.
#pragma once

#include "cuda/sm80/products.cuh"

namespace attn::cuda {

template <class Element>
ATTN_DEVICE void read_four(float (&x)[4], const char* at) {
  struct alignas(4 * sizeof(Element)) Four {
    Element values[4];
  };
  const Four four = *reinterpret_cast<const Four*>(at);
#pragma unroll
  for (int c = 0; c < 4; ++c) x[c] = to_float(four.values[c]);
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
    const int step = static_cast<int>(element_bytes(dtype));
    const char* at = row + int64_t{column} * step;
    if (count >= 4 && reinterpret_cast<uintptr_t>(at) % (4 * step) == 0) {
      switch (dtype) {
        case DType::kBFloat16: return read_four<BFloat16>(x, at);
        case DType::kFloat16: return read_four<Half>(x, at);
        default: return read_four<float>(x, at);
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = c < count ? read_number(at + c * step, dtype) : 0.0f;
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
