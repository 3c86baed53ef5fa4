// Operands of bfloat16 pairs, multiplied by AMX: 16 rows by 16 columns of sums per tile register.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/bfloat16_pairs_avx512.h"

namespace attn::cpu {
namespace {

struct BFloat16Tiles : BFloat16Pairs {
  static constexpr int64_t kTileRows = 16;     // of sums, and of a left operand
  static constexpr int64_t kTileColumns = 16;  // of sums, and of a right operand
  static constexpr int64_t kTileUnits = 16;    // of depth

  // The shapes of a thread's tile registers while a task runs, which alone uses them then: to set
  // them takes as long as some products.
  class Registers {
   public:
    Registers() = default;
    Registers(const Registers&) = delete;
    Registers& operator=(const Registers&) = delete;
    // Gives them back to the operating system's care.
    ~Registers() {
      if (rows_ > 0) _tile_release();
    }

    // Each number is at least 1 and at most the tile's.
    void configure(int64_t rows, int64_t lower_rows, int64_t units) {
      if (rows == rows_ && lower_rows == lower_rows_ && units == units_) return;
      load_shapes(rows, lower_rows, units);
      rows_ = rows, lower_rows_ = lower_rows, units_ = units;
    }

   private:
    int64_t rows_ = 0, lower_rows_ = 0, units_ = 0;
  };

  // C (+)= A B over `steps` tiles of depth: one tile of sums, or two beside or below each other, or
  // four. Strides are in 32-bit units; A is row-major.
  template <bool kLower, bool kRight>
  static void multiply_tiles(const Unit* a, int64_t a_stride, const Unit* b, int64_t b_stride,
                             int64_t steps, float* c, int64_t c_stride, bool accumulate) {
    const int64_t a_bytes = 4 * a_stride, b_bytes = 4 * b_stride, c_bytes = 4 * c_stride;
    float* const lower = c + kTileRows * c_stride;
    // The compiler does not know that tiles are loaded from memory: all is to be written by now.
    asm volatile("" ::: "memory");
    if (accumulate) {
      _tile_loadd(0, c, c_bytes);
      if constexpr (kRight) _tile_loadd(1, c + kTileColumns, c_bytes);
      if constexpr (kLower) _tile_loadd(2, lower, c_bytes);
      if constexpr (kLower && kRight) _tile_loadd(3, lower + kTileColumns, c_bytes);
    } else {
      _tile_zero(0);
      if constexpr (kRight) _tile_zero(1);
      if constexpr (kLower) _tile_zero(2);
      if constexpr (kLower && kRight) _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; ++step) {
      _tile_loadd(4, a, a_bytes);
      _tile_loadd(6, b, b_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kRight) {
        _tile_loadd(7, b + kTileColumns, b_bytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kLower) {
        _tile_loadd(5, a + kTileRows * a_stride, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (kLower && kRight) _tile_dpbf16ps(3, 5, 7);
      a += kTileUnits;
      b += kTileUnits * b_stride;
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (kRight) _tile_stored(1, c + kTileColumns, c_bytes);
    if constexpr (kLower) _tile_stored(2, lower, c_bytes);
    if constexpr (kLower && kRight) _tile_stored(3, lower + kTileColumns, c_bytes);
  }

 private:
  // Tiles 0 to 3 are sums, two rows of two; 4 and 5 hold left operands, 6 and 7 right ones.
  static void load_shapes(int64_t rows, int64_t lower_rows, int64_t units) {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t unused[15] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    const auto shape = [&](int tile, int64_t rows, int64_t columns) {
      shapes.rows[tile] = static_cast<uint8_t>(rows);
      shapes.row_bytes[tile] = static_cast<uint16_t>(columns * 4);
    };
    shape(0, rows, kTileColumns), shape(1, rows, kTileColumns);
    shape(2, lower_rows, kTileColumns), shape(3, lower_rows, kTileColumns);
    shape(4, rows, units), shape(5, lower_rows, units);
    shape(6, units, kTileColumns), shape(7, units, kTileColumns);
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
};

}  // namespace
}  // namespace attn::cpu
