// AMX's tile registers as a task's products use them.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace attn::cpu {
namespace {

// Each holds up to 16 rows of 16 units, which are 32-bit numbers or pairs of bfloat16. Tiles 0 to 3
// are sums, two rows of two; 4 and 5 left operands, one below the other; 6 and 7 right ones.
struct Tiles {
  static constexpr int64_t kRows = 16;     // of sums, and of a left operand
  static constexpr int64_t kColumns = 16;  // of sums, and of a right operand
  static constexpr int64_t kUnits = 16;    // of depth
};

// The shapes of a thread's tile registers while a task runs, which alone uses them then: setting
// them takes as long as some products.
class TileRegisters {
 public:
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  // So that the operating system no longer saves them.
  ~TileRegisters() {
    if (rows_ > 0) _tile_release();
  }

  // Each number is at least 1 and at most the tile's.
  void configure(int64_t rows, int64_t lower_rows, int64_t units) {
    if (rows == rows_ && lower_rows == lower_rows_ && units == units_) return;
    load_shapes(rows, lower_rows, units);
    rows_ = rows, lower_rows_ = lower_rows, units_ = units;
  }

 private:
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
    shape(0, rows, Tiles::kColumns), shape(1, rows, Tiles::kColumns);
    shape(2, lower_rows, Tiles::kColumns), shape(3, lower_rows, Tiles::kColumns);
    shape(4, rows, units), shape(5, lower_rows, units);
    shape(6, units, Tiles::kColumns), shape(7, units, Tiles::kColumns);
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }

  int64_t rows_ = 0, lower_rows_ = 0, units_ = 0;
};

// One tile of sums, or two beside or below each other, or four. Strides are in units.
template <bool kLower, bool kRight>
struct TileSums : Tiles {
  static void begin(const float* c, int64_t stride, bool accumulate) {
    // The compiler does not know that tiles are loaded from memory: all has to be written by now.
    asm volatile("" ::: "memory");
    const float* const lower = c + kRows * stride;
    if (accumulate) {
      _tile_loadd(0, c, 4 * stride);
      if constexpr (kRight) _tile_loadd(1, c + kColumns, 4 * stride);
      if constexpr (kLower) _tile_loadd(2, lower, 4 * stride);
      if constexpr (kLower && kRight) _tile_loadd(3, lower + kColumns, 4 * stride);
    } else {
      _tile_zero(0);
      if constexpr (kRight) _tile_zero(1);
      if constexpr (kLower) _tile_zero(2);
      if constexpr (kLower && kRight) _tile_zero(3);
    }
  }

  static void load_left(const float* a, int64_t stride) {
    _tile_loadd(4, a, 4 * stride);
    if constexpr (kLower) _tile_loadd(5, a + kRows * stride, 4 * stride);
  }

  static void load_right(const float* b, int64_t stride) {
    _tile_loadd(6, b, 4 * stride);
    if constexpr (kRight) _tile_loadd(7, b + kColumns, 4 * stride);
  }

  // The operands are of bfloat16 pairs.
  static void add_products() {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRight) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kLower) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kLower && kRight) _tile_dpbf16ps(3, 5, 7);
  }

  static void store(float* c, int64_t stride) {
    float* const lower = c + kRows * stride;
    _tile_stored(0, c, 4 * stride);
    if constexpr (kRight) _tile_stored(1, c + kColumns, 4 * stride);
    if constexpr (kLower) _tile_stored(2, lower, 4 * stride);
    if constexpr (kLower && kRight) _tile_stored(3, lower + kColumns, 4 * stride);
  }
};

}  // namespace
}  // namespace attn::cpu
