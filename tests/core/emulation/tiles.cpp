#include "tiles.h"

#include <cstring>

#include "bfloat16.h"

namespace emulation {
namespace {

constexpr int kRows = 16, kUnits = 16;  // of a tile; a unit is a float or two bfloat16

// The tile registers, and their shapes as _tile_loadconfig reads them.
struct Tiles {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shapes;
  uint32_t row[8][kRows][kUnits];

  int units(int tile) const { return shapes.row_bytes[tile] / 4; }
};
thread_local Tiles tiles;

// Both numbers of each unit of a row.
struct Numbers {
  float even[kUnits], odd[kUnits];

  explicit Numbers(const uint32_t (&row)[kUnits]) {
    for (int c = 0; c < kUnits; ++c) {
      even[c] = float_of_high_half(row[c] & 0xffff);
      odd[c] = float_of_high_half(row[c] >> 16);
    }
  }
};

}  // namespace

void tile_loadconfig(const void* shapes) {
  std::memset(&tiles, 0, sizeof tiles);
  std::memcpy(&tiles.shapes, shapes, sizeof tiles.shapes);
}

void tile_loadd(int tile, const void* from, int64_t stride) {
  tile_zero(tile);
  for (int r = 0; r < tiles.shapes.rows[tile]; ++r) {
    std::memcpy(tiles.row[tile][r], static_cast<const char*>(from) + r * stride,
                tiles.shapes.row_bytes[tile]);
  }
}

void tile_stored(int tile, void* to, int64_t stride) {
  for (int r = 0; r < tiles.shapes.rows[tile]; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, tiles.row[tile][r],
                tiles.shapes.row_bytes[tile]);
  }
}

void tile_zero(int tile) { std::memset(tiles.row[tile], 0, sizeof tiles.row[tile]); }

// Even and odd products are summed apart, by fused additions, and then join the tile's sum.
void tile_dpbf16ps(int sums, int a, int b) {
  for (int r = 0; r < tiles.shapes.rows[sums]; ++r) {
    const Numbers x(tiles.row[a][r]);
    float even[kUnits]{}, odd[kUnits]{}, sum[kUnits];
    for (int d = 0; d < tiles.shapes.rows[b]; ++d) {
      const Numbers y(tiles.row[b][d]);
      for (int c = 0; c < kUnits; ++c) {
        even[c] = flushed(std::fma(x.even[d], y.even[c], even[c]));
        odd[c] = flushed(std::fma(x.odd[d], y.odd[c], odd[c]));
      }
    }
    std::memcpy(sum, tiles.row[sums][r], sizeof sum);
    for (int c = 0; c < kUnits; ++c) sum[c] = flushed(flushed(sum[c]) + flushed(even[c] + odd[c]));
    std::memcpy(tiles.row[sums][r], sum, sizeof(float) * tiles.units(sums));
  }
}

}  // namespace emulation
