// The forward's first product, over several row tiles of a warp, so that what is read of keys
// serves all of them.
#pragma once

#include "cuda/device/products.cuh"

namespace attn::cuda {

// A warp's query rows as left operand: read from shared memory when they are needed ...
template <class Tile>
struct SharedQueries {
  Tile tile;
  int row;  // the first

  ATTN_DEVICE SharedQueries(const Tile& tile, int row) : tile(tile), row(row) {}

  ATTN_DEVICE void read(uint32_t (&a)[4], int m, int block) const {
    tile.load_left(a, row + 16 * m, block);
  }
};

// ... or held in registers.
template <class Tile, int kRowTiles>
struct HeldQueries {
  static constexpr int kBlocks = Tile::kWidth / Tile::kDepth;
  Tile tile;
  int row;
  uint32_t held[kRowTiles][kBlocks][4];

  ATTN_DEVICE HeldQueries(const Tile& tile, int row) : tile(tile), row(row) {}

  ATTN_DEVICE void load() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        tile.load_left(held[m][block], row + 16 * m, block);
      }
    }
  }
  ATTN_DEVICE void read(uint32_t (&a)[4], int m, int block) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = held[m][block][i];
  }
};

// sums = queries times the first kColumns rows of keys transposed.
template <int kRowTiles, int kColumns, class Queries, class Tile>
ATTN_DEVICE void multiply_queries(Sums<kColumns> (&sums)[kRowTiles], const Queries& queries,
                                  const Tile& keys) {
  using Element = typename Tile::Element;
  constexpr int kBlocks = Tile::kWidth / Tile::kDepth;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) sums[m].clear();
#pragma unroll(sizeof(Element) == 4 ? 1 : kBlocks)
  for (int block = 0; block < kBlocks; block += kStepBlocks<Element>) {
    add_step<Element, kRowTiles>(
        sums, keys.splits, [&](uint32_t(&a)[4], int m, int i) { queries.read(a, m, block + i); },
        [&](uint32_t(&b)[4], int n, int i) { keys.load_right(b, 16 * n, block + i); });
  }
}

}  // namespace attn::cuda
