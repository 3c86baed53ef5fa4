// What the gradients of positions are made of: score gradients of a tile, laid where diagonals of
// it can be read, and sums of weighted rows that no tile holds.
#pragma once

#include "cuda/device/nonfinite_rows.cuh"
#include "cuda/sm80/position_rows.cuh"
#include "cuda/sm80/streamed_tiles.cuh"

namespace attn::cuda {

// The score gradients of a tile, [rows, kColumns], in shared memory where nothing is read any more.
template <int kColumns>
struct SharedGrads {
  float* data;

  // All threads of the block join, each with its warp's 16 rows.
  ATTN_DEVICE void store(const Sums<kColumns>& grads) const {
    synchronise_block();
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = warp_index() * 16 + lane() / 4 + e / 2 * 8;
        data[row * kColumns + 8 * n + lane() % 4 * 2 + e % 2] = grads.values[n][e];
      }
    }
    synchronise_block();
  }

  // 0 outside the first `rows` rows.
  ATTN_DEVICE float at(int row, int column, int rows) const {
    const bool is_there = row >= 0 && row < rows && column >= 0 && column < kColumns;
    return is_there ? data[row * kColumns + column] : 0.0f;
  }
};

// Those of a whole tile fit where its streamed rows are.
static_assert(RareShape::kStationary * RareShape::kStreamed * static_cast<int>(sizeof(float)) <=
              RareMemory::Pair::bytes(RareShape::kStreamed));

// Adds where rows that hold NaN or infinity belong: NaN where their weight is not 0.
ATTN_DEVICE void add_spoilt(float (&sums)[4], const LeftFragment<float>& weights, float low,
                            float high) {
  constexpr uint32_t kOne = ElementBits<float>::kOne;
  uint32_t is_weighed[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    is_weighed[i] = __builtin_bit_cast(float, weights.a.large[i]) != 0.0f ? kOne : 0u;
  }
  const uint32_t is_spoilt[2] = {fabsf(low) < infinity() ? 0u : kOne,
                                 fabsf(high) < infinity() ? 0u : kOne};
  float spoilt[4] = {};
  multiply_accumulate_tf32(spoilt, is_weighed, is_spoilt);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (spoilt[e] > 0.0f) sums[e] = __builtin_bit_cast(float, 0x7FC00000u);
  }
}

// A warp's 16 sums of weighted rows, of which it has the columns [first, first + kColumns).
struct PositionSums : Sums<64> {
  static constexpr int kColumns = 64;

  int first;

  // Four fragments share 32 columns, of which a lane loads four that lie together.
  ATTN_DEVICE static int column(int n, int e) {
    return n / 4 * 32 + (lane() % 4 * 2 + e % 2) * 4 + n % 4;
  }

  // Adds rows k < depth: row_of(k) is the address of one, null for zeros, and weight_of(r, k) what
  // it counts for sum r.
  template <class WeightOf, class RowOf>
  ATTN_DEVICE void add(int depth, const RowFormat& format, WeightOf&& weight_of, RowOf&& row_of) {
    const int g = lane() / 4;
#pragma unroll 1
    for (int block = 0; block < depth; block += 8) {
      const int k = block + lane() % 4 * 2;
      const LeftFragment<float> weights[1] = {
          left_of_floats(weight_of(g, k), weight_of(g + 8, k), weight_of(g, k + 1),
                         weight_of(g + 8, k + 1), format.is_wide())};
      const char* const rows[2] = {row_of(k), row_of(k + 1)};
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 4) {
        float low[4], high[4];
        format.load(low, rows[0], first + 8 * n + 4 * g);
        format.load(high, rows[1], first + 8 * n + 4 * g);
        add_columns(n, weights, low, high);
      }
    }
  }

  // Writes sum r, times `factor`, to the row at row_of(r), unless that is null, or `adds` it there.
  template <class RowOf>
  ATTN_DEVICE void store(DType dtype, int width, float factor, bool adds, RowOf&& row_of) const {
    float sums[kColumns / 2];  // in local memory, so that the code is there once
    copy_to(sums);
#pragma unroll 1
    for (int at = 0; at < kColumns / 2; ++at) {
      char* const row = row_of(lane() / 4 + at % 4 / 2 * 8);
      const int column = first + this->column(at / 4, at % 2);
      if (!row || column >= width) continue;
      char* const to = row + column * element_bytes(dtype);
      const float before = adds ? read_number(to, dtype) : 0.0f;
      write_number(to, dtype, fmaf(sums[at], factor, before));
    }
  }

 private:
  ATTN_DEVICE void add_columns(int n, const LeftFragment<float> (&weights)[1], float (&low)[4],
                               float (&high)[4]) {
    bool is_finite = true;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      is_finite &= fabsf(low[c]) < infinity() && fabsf(high[c]) < infinity();
    }
    const bool is_careful = any(!is_finite);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (is_careful) {
        add_spoilt(values[n + c], weights[0], low[c], high[c]);
        low[c] = fabsf(low[c]) < infinity() ? low[c] : 0.0f;
        high[c] = fabsf(high[c]) < infinity() ? high[c] : 0.0f;
      }
      const uint32_t rows[1][2] = {
          {__builtin_bit_cast(uint32_t, low[c]), __builtin_bit_cast(uint32_t, high[c])}};
      add_products<false>(values[n + c], weights, rows);
    }
  }
};

}  // namespace attn::cuda
