// Operands of bfloat16 pairs, multiplied by AMX.
#pragma once

#include <cstdint>

#include "cpu/simd/bfloat16_pairs_avx512.h"
#include "cpu/simd/tile_registers_amx.h"

namespace attn::cpu {
namespace {

struct BFloat16Tiles : BFloat16Pairs {
  using Registers = TileRegisters;
  static constexpr int64_t kTileRows = Tiles::kRows;
  static constexpr int64_t kTileColumns = Tiles::kColumns;
  static constexpr int64_t kTileUnits = Tiles::kUnits;

  // C (+)= A B over `steps` tiles of depth. Strides are in units; A is row-major.
  template <bool kLower, bool kRight>
  static void multiply_tiles(const Unit* a, int64_t a_stride, const Unit* b, int64_t b_stride,
                             int64_t steps, float* c, int64_t c_stride, bool accumulate) {
    using Sums = TileSums<kLower, kRight>;
    Sums::begin(c, c_stride, accumulate);
    for (int64_t step = 0; step < steps; ++step) {
      Sums::load_left(a, a_stride);
      Sums::load_right(b, b_stride);
      Sums::add_products();
      a += kTileUnits;
      b += kTileUnits * b_stride;
    }
    Sums::store(c, c_stride);
  }
};

}  // namespace
}  // namespace attn::cpu
