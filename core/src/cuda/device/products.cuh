// Products of tiles, a warp's 16 rows at a time, accumulated in float32.
//
// Float32 operands are each split in two TF32 numbers, whose three largest products are summed. A
// matrix instruction cuts sums off where others round them, so that thousands of additions lose
// more than the split keeps: it sums one step of the depth, which is added to the rest outside.
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
// half. Cut off, it would cost a third less, and the products that are left out be four times as
// large.
template <int kRegisters>
struct SplitFragment {
  uint32_t large[kRegisters], small[kRegisters];

  SplitFragment() = default;
  ATTN_DEVICE SplitFragment(const uint32_t* floats, bool splits) {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      const float x = __builtin_bit_cast(float, floats[i]);
      large[i] = splits ? (floats[i] + (kCutBits + 1) / 2) & ~kCutBits : to_tf32(x);
      small[i] = __builtin_bit_cast(uint32_t, x - __builtin_bit_cast(float, large[i]));
    }
  }
};

// A left operand of one instruction, ready to be multiplied with many right ones.
template <class Element>
struct LeftFragment {
  uint32_t a[4];

  LeftFragment() = default;
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

  LeftFragment() = default;
  ATTN_DEVICE LeftFragment(const uint32_t (&bits)[4], bool splits)
      : a(bits, splits), splits(splits) {}

  template <bool kSwapped>
  ATTN_DEVICE void multiply(float (&sums)[4], const uint32_t (&bits)[2]) const {
    const SplitFragment<2> b(bits, splits);
    if (splits) {
      multiply_accumulate_tf32(sums, kSwapped ? a.large : a.small, kSwapped ? b.small : b.large);
      multiply_accumulate_tf32(sums, kSwapped ? a.small : a.large, kSwapped ? b.large : b.small);
    }
    multiply_accumulate_tf32(sums, a.large, b.large);
  }
};

// sums += left times right, whose depth is that of kBlocks instructions.
template <bool kSwapped, class Element, int kBlocks>
ATTN_DEVICE void add_products(float (&sums)[4], const LeftFragment<Element> (&left)[kBlocks],
                              const uint32_t (&right)[kBlocks][2]) {
  if constexpr (sizeof(Element) == 2) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) left[i].template multiply<kSwapped>(sums, right[i]);
  } else {
    float products[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) left[i].template multiply<kSwapped>(products, right[i]);
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[e] += products[e];
  }
}

constexpr int kStepDepth = 16;  // elements of a step's depth

// Instructions of a step.
template <class Element>
constexpr int kStepBlocks = kStepDepth * static_cast<int>(sizeof(Element)) / kFragmentBytes;

// Adds one step of a product of 16 kRowTiles rows and kColumns columns to `sums`, of a row tile
// each. What instruction `block` of the step multiplies is read by load_left(a, m, block) for row
// tile m, and by load_right(b, n, block) for the columns [16 n, 16 n + 16), two right operands.
template <class Element, int kRowTiles, bool kSwapped = false, int kColumns, class LoadLeft,
          class LoadRight>
ATTN_DEVICE void add_step(Sums<kColumns>* sums, bool splits, LoadLeft&& load_left,
                          LoadRight&& load_right) {
  constexpr int kBlocks = kStepBlocks<Element>;
  LeftFragment<Element> left[kRowTiles][kBlocks];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      uint32_t a[4];
      load_left(a, m, i);
      left[m][i] = LeftFragment<Element>(a, splits);
    }
  }
#pragma unroll
  for (int n = 0; n < kColumns / 16; ++n) {
    uint32_t right[2][kBlocks][2];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      uint32_t b[4];
      load_right(b, n, i);
#pragma unroll
      for (int r = 0; r < 4; ++r) right[r / 2][i][r % 2] = b[r];
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      add_products<kSwapped>(sums[m].values[2 * n], left[m], right[0]);
      add_products<kSwapped>(sums[m].values[2 * n + 1], left[m], right[1]);
    }
  }
}

// sums[m] = rows [left_row + 16 m, left_row + 16 m + 16) of left, times the first kColumns rows of
// right transposed; from column `width` on they hold zeros. kUnrolled: steps of 16-bit elements.
template <int kRowTiles = 1, bool kSwapped = false, int kUnrolled = 2, int kColumns, class Tile>
ATTN_DEVICE void multiply_rows(Sums<kColumns>* sums, const Tile& left, int left_row,
                               const Tile& right, int width = Tile::kWidth) {
  using Element = typename Tile::Element;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) sums[m].clear();
#pragma unroll(sizeof(Element) == 4 ? 1 : kUnrolled)
  for (int block = 0; block * Tile::kDepth < width; block += kStepBlocks<Element>) {
    add_step<Element, kRowTiles, kSwapped>(
        sums, right.splits,
        [&](uint32_t(&a)[4], int m, int i) { left.load_left(a, left_row + 16 * m, block + i); },
        [&](uint32_t(&b)[4], int n, int i) { right.load_right(b, 16 * n, block + i); });
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

// What rounding to Element takes of each weight; nothing of one that becomes infinite.
template <class Element, int kColumns>
ATTN_DEVICE void keep_rests(Sums<kColumns>& weights) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float& x = weights.values[n][e];
      x -= to_float(from_float<Element>(x));
      if (!(fabsf(x) < infinity())) x = 0.0f;
    }
  }
}

// sums[m] += weights[m] times the first kRows rows of right.
template <int kRowTiles = 1, int kRows, class Tile>
ATTN_DEVICE void add_weighted_rows(Sums<Tile::kWidth>* sums, const Sums<kRows>* weights,
                                   const Tile& right) {
  using Element = typename Tile::Element;
#pragma unroll
  for (int block = 0; block < kRows / Tile::kDepth; block += kStepBlocks<Element>) {
    add_step<Element, kRowTiles>(
        sums, right.splits,
        [&](uint32_t(&a)[4], int m, int i) {
          load_left_of_sums<Element>(a, weights[m], block + i);
        },
        [&](uint32_t(&b)[4], int n, int i) {
          right.load_right_by_depth(b, (block + i) * Tile::kDepth, 16 * n);
        });
  }
}

// The same; with `keeps_rests` also of what rounding took of 16-bit weights, which end up as that.
template <int kRowTiles = 1, int kRows, class Tile>
ATTN_DEVICE void add_weighted_rows(Sums<Tile::kWidth>* sums, Sums<kRows>* weights,
                                   const Tile& right, bool keeps_rests) {
  using Element = typename Tile::Element;
  const int parts = sizeof(Element) == 2 && keeps_rests ? 2 : 1;
#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    if (part > 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) keep_rests<Element>(weights[m]);
    }
    add_weighted_rows<kRowTiles>(sums, weights, right);
  }
}

}  // namespace attn::cuda
