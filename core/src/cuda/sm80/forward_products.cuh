// The forward's two products, over several row tiles of a warp, so that what is read of keys and
// values serves all of them.
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
  using Fragment = LeftFragment<typename Tile::Element>;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) sums[m].clear();
#pragma unroll(sizeof(typename Tile::Element) == 4 ? 2 : Tile::kWidth / Tile::kDepth)
  for (int block = 0; block < Tile::kWidth / Tile::kDepth; ++block) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) queries.read(a[m], m, block);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t b[4];
      keys.load_right(b, 16 * n, block);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const Fragment fragment(a[m], keys.splits);
        fragment.template multiply<false>(sums[m].values[2 * n], {b[0], b[1]});
        fragment.template multiply<false>(sums[m].values[2 * n + 1], {b[2], b[3]});
      }
    }
  }
}

// sums += probabilities times the first kKeys rows of values.
template <int kRowTiles, int kKeys, class Tile>
ATTN_DEVICE void add_values(Sums<Tile::kWidth> (&sums)[kRowTiles],
                            const Sums<kKeys> (&probabilities)[kRowTiles], const Tile& values) {
  using Fragment = LeftFragment<typename Tile::Element>;
#pragma unroll
  for (int block = 0; block < kKeys / Tile::kDepth; ++block) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      load_left_of_sums<typename Tile::Element>(a[m], probabilities[m], block);
    }
#pragma unroll
    for (int n = 0; n < Tile::kWidth / 16; ++n) {
      uint32_t b[4];
      values.load_right_by_depth(b, block * Tile::kDepth, 16 * n);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const Fragment fragment(a[m], values.splits);
        fragment.template multiply<false>(sums[m].values[2 * n], {b[0], b[1]});
        fragment.template multiply<false>(sums[m].values[2 * n + 1], {b[2], b[3]});
      }
    }
  }
}

}  // namespace attn::cuda
