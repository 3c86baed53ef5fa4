// Products of tiles, a warp's 16 rows at a time, accumulated in float32.
//
// Float32 operands are each split in two TF32 numbers, whose three largest products are summed. A
// matrix instruction cuts sums off where others round them, so that thousands of additions lose
// more than the split keeps: sums are added to outside of it.
// Source: Ootomo & Yokota 2022, arXiv:2203.03341, section 3, without their scaling.
#pragma once

#include "cuda/device/row_tile.cuh"

namespace attn::cuda {

// Sums of 16 rows by kColumns, as fragments of eight columns.
template <int kColumns>
struct Sums {
  float values[kColumns / 8][4];

  ATTN_DEVICE void clear() {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) values[n][e] = 0.0f;
    }
  }
  // Fragment by fragment, for loops that are not unrolled.
  ATTN_DEVICE void copy_to(float (&to)[kColumns / 2]) const {
#pragma unroll
    for (int at = 0; at < kColumns / 2; ++at) to[at] = values[at / 4][at % 4];
  }
  ATTN_DEVICE bool has_nan() const {
    bool found = false;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) found |= values[n][e] != values[n][e];
    }
    return found;
  }
};

constexpr uint32_t kCutBits = 0x1FFF;  // of a float, which the matrix instruction does not read

// Each number as a TF32 number and the rest, whose leading bits the instruction reads. With
// `splits` NaN is NaN in the rest, and perhaps not in the number: rounded as an integer that costs
// half.
template <int kRegisters>
struct SplitFragment {
  uint32_t large[kRegisters], small[kRegisters];

  ATTN_DEVICE SplitFragment(const uint32_t* floats, bool splits) {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      const float x = __builtin_bit_cast(float, floats[i]);
      large[i] = splits ? (floats[i] + (kCutBits + 1) / 2) & ~kCutBits : to_tf32(x);
      small[i] = __builtin_bit_cast(uint32_t, x - __builtin_bit_cast(float, large[i]));
    }
  }
};

// A fragment of a left operand, ready to be multiplied with many right ones.
template <class Element>
struct LeftFragment {
  uint32_t a[4];

  // `splits`: as of a RowTile, whichever the operand.
  ATTN_DEVICE LeftFragment(const uint32_t (&bits)[4], bool /*splits*/) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = bits[i];
  }
  // kSwapped: the right operand's rows are queries. The sums are then those of the same product
  // with its sides exchanged, to the last bit.
  template <bool kSwapped>
  ATTN_DEVICE void multiply(float (&sums)[4], const uint32_t (&b)[2]) const {
    multiply_accumulate<Element>(sums, a, b);
  }
};

template <>
struct LeftFragment<float> {
  SplitFragment<4> a;
  bool splits;

  ATTN_DEVICE LeftFragment(const uint32_t (&bits)[4], bool splits)
      : a(bits, splits), splits(splits) {}

  template <bool kSwapped>
  ATTN_DEVICE void multiply(float (&sums)[4], const uint32_t (&bits)[2]) const {
    const SplitFragment<2> b(bits, splits);
    float products[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (splits) {
      multiply_accumulate_tf32(products, kSwapped ? a.large : a.small,
                               kSwapped ? b.small : b.large);
      multiply_accumulate_tf32(products, kSwapped ? a.small : a.large,
                               kSwapped ? b.large : b.small);
    }
    multiply_accumulate_tf32(products, a.large, b.large);
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[e] += products[e];
  }
};

// sums = rows [left_row, left_row + 16) of left, times the first kColumns rows of right transposed;
// from column `width` on they hold zeros.
template <bool kSwapped, int kColumns, class Tile>
ATTN_DEVICE void multiply_rows(Sums<kColumns>& sums, const Tile& left, int left_row,
                               const Tile& right, int width = Tile::kWidth) {
  sums.clear();
#pragma unroll 2
  for (int block = 0; block * Tile::kDepth < width; ++block) {
    uint32_t a[4];
    left.load_left(a, left_row, block);
    const LeftFragment<typename Tile::Element> fragment(a, right.splits);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t b[4];
      right.load_right(b, 16 * n, block);
      fragment.template multiply<kSwapped>(sums.values[2 * n], {b[0], b[1]});
      fragment.template multiply<kSwapped>(sums.values[2 * n + 1], {b[2], b[3]});
    }
  }
}

// A fragment of sums as a left operand of depth kDepth, rounded to Element.
template <class Element, int kColumns>
ATTN_DEVICE void load_left_of_sums(uint32_t (&a)[4], const Sums<kColumns>& sums, int block) {
  if constexpr (sizeof(Element) == 2) {
    const float(&low)[4] = sums.values[2 * block];
    const float(&high)[4] = sums.values[2 * block + 1];
    a[0] = pack<Element>(low[0], low[1]);
    a[1] = pack<Element>(low[2], low[3]);
    a[2] = pack<Element>(high[0], high[1]);
    a[3] = pack<Element>(high[2], high[3]);
  } else {
    const float(&x)[4] = sums.values[block];
    a[0] = __builtin_bit_cast(uint32_t, x[0]);
    a[1] = __builtin_bit_cast(uint32_t, x[2]);
    a[2] = __builtin_bit_cast(uint32_t, x[1]);
    a[3] = __builtin_bit_cast(uint32_t, x[3]);
  }
}

// sums += weights times the first kRows rows of right.
template <int kRows, class Tile>
ATTN_DEVICE void add_weighted_rows(Sums<Tile::kWidth>& sums, const Sums<kRows>& weights,
                                   const Tile& right) {
#pragma unroll
  for (int block = 0; block < kRows / Tile::kDepth; ++block) {
    uint32_t a[4];
    load_left_of_sums<typename Tile::Element>(a, weights, block);
    const LeftFragment<typename Tile::Element> fragment(a, right.splits);
#pragma unroll
    for (int n = 0; n < Tile::kWidth / 16; ++n) {
      uint32_t b[4];
      right.load_right_by_depth(b, block * Tile::kDepth, 16 * n);
      fragment.template multiply<false>(sums.values[2 * n], {b[0], b[1]});
      fragment.template multiply<false>(sums.values[2 * n + 1], {b[2], b[3]});
    }
  }
}

}  // namespace attn::cuda
