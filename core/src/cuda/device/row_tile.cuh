// A tile of rows of an operand in shared memory: how it is filled, and read as matrix fragments.
//
// A fragment is 32 bytes deep whatever the element: 16 of 16 bits, or 8 of float32. With that the
// two kinds of matrix instruction lay their operands out alike.
#pragma once

#include <type_traits>

#include "cuda/device/copy.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/matrix.cuh"
#include "cuda/device/row_format.cuh"
#include "cuda/device/score_terms.cuh"
#include "cuda/device/warp.cuh"
#include "problem/problem.h"

namespace attn::cuda {

// Whether there are matrix instructions for it.
template <class Element>
constexpr bool kIsServed = kCompiledCapability >= 80 || std::is_same_v<Element, Half>;

constexpr int kChunkBytes = 16;  // of one asynchronous copy, and of one row that ldmatrix reads
constexpr int kFragmentBytes = 2 * kChunkBytes;  // of a fragment's depth

struct alignas(kChunkBytes) Chunk {
  uint32_t words[kChunkBytes / 4];
};

// Rows of kWidth elements, 16 bytes apart: then no two of the eight rows that ldmatrix reads at
// once, nor of the eight that a quad reads by depth, share a bank.
template <class Element_, int kWidth_>
struct RowTile {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;
  static constexpr int kChunkElements = kChunkBytes / static_cast<int>(sizeof(Element));
  static constexpr int kStride = kWidth + kChunkElements;  // elements from row to row
  static constexpr int kDepth = kFragmentBytes / static_cast<int>(sizeof(Element));

  static constexpr int bytes(int rows) {
    return rows * kStride * static_cast<int>(sizeof(Element));
  }

  Element* data;
  bool splits;  // whether float32 elements are more than TF32 numbers, which 16-bit ones are

  ATTN_DEVICE explicit RowTile(char* memory, bool splits = true)
      : data(reinterpret_cast<Element*>(memory)), splits(splits) {}

  ATTN_DEVICE Element* at(int row, int column) const { return data + row * kStride + column; }

  // Rows [row, row + 16) as a left operand, at depth block `block`.
  ATTN_DEVICE void load_left(uint32_t (&a)[4], int row, int block) const {
    const int matrix = lane() / 8;
    load_matrices(
        a, at(row + matrix % 2 * 8 + lane() % 8, block * kDepth + matrix / 2 * kChunkElements));
  }

  // Rows [row, row + 16) as columns of a right operand, at depth block `block`: two of its
  // fragments.
  ATTN_DEVICE void load_right(uint32_t (&b)[4], int row, int block) const {
    const int matrix = lane() / 8;
    load_matrices(
        b, at(row + matrix / 2 * 8 + lane() % 8, block * kDepth + matrix % 2 * kChunkElements));
  }

  // Columns [column, column + 16) as rows of a left operand whose depth is the rows
  // [row, row + kDepth). Float32 rows come in the order 0 2 4 6 1 3 5 7, in which a fragment of
  // sums has its columns as a left operand's depth.
  ATTN_DEVICE void load_left_by_depth(uint32_t (&a)[4], int row, int column) const {
    if constexpr (sizeof(Element) == 2) {
      const int matrix = lane() / 8;
      load_matrices_transposed(a, at(row + matrix / 2 * 8 + lane() % 8, column + matrix % 2 * 8));
    } else {
      const int g = lane() / 4, t = lane() % 4;
      for (int i = 0; i < 4; ++i) {
        a[i] = __builtin_bit_cast(uint32_t, *at(row + 2 * t + i / 2, column + i % 2 * 8 + g));
      }
    }
  }

  // Columns [column, column + 16) as columns of a right operand, likewise.
  ATTN_DEVICE void load_right_by_depth(uint32_t (&b)[4], int row, int column) const {
    if constexpr (sizeof(Element) == 2) {
      const int matrix = lane() / 8;
      load_matrices_transposed(b, at(row + matrix % 2 * 8 + lane() % 8, column + matrix / 2 * 8));
    } else {
      const int g = lane() / 4, t = lane() % 4;
      for (int i = 0; i < 4; ++i) {
        b[i] = __builtin_bit_cast(uint32_t, *at(row + 2 * t + i % 2, column + i / 2 * 8 + g));
      }
    }
  }
};

// Two neighbours in shared memory, the first at an even column.
template <class Element>
ATTN_DEVICE void load_pair(float (&pair)[2], const Element* at) {
  const auto both = *reinterpret_cast<const Vector<Element, 2>*>(at);
  pair[0] = to_float(both.values[0]);
  pair[1] = to_float(both.values[1]);
}

// An operand in global memory, as rows are loaded from it.
struct RowSource {
  RowFormat format;  // the tile's elements beyond its width become 0
  bool is_aligned;   // in whole chunks that asynchronous copies take

  // Whether a tile of such elements can be a copy of its rows.
  template <class Element>
  ATTN_DEVICE bool is_copied() const {
    return is_aligned && (sizeof(Element) == 2 || format.is_wide());
  }
};

// The row that a thread copies first, where kLanes neighbours share one. Eight of them write at
// once: in 8 / kLanes rows so far apart that no two chunks share a bank, as kStride is odd in
// chunks.
template <int kLanes>
ATTN_DEVICE int copied_row(int thread) {
  constexpr int kTogether = 8 / kLanes;
  const int row = thread / kLanes;
  if constexpr (kTogether == 1) return row;
  return row / 8 * 8 + row % kTogether * kLanes + row % 8 / kTogether;
}

// Fills `rows` rows of the tile by kThreads threads, of which this is number `thread`. row_of(r) is
// the address of row r, or null for zeros. What is not aligned is there at the next barrier, the
// rest after a wait for copies.
template <int kThreads, class Tile, class RowOf>
ATTN_DEVICE void load_rows(const Tile& tile, int rows, const RowSource& source, RowOf&& row_of,
                           int thread = thread_index()) {
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kWidth / Tile::kChunkElements;
  constexpr int kLanes = kChunks % 8 == 0 ? 8 : 4;  // threads that share a row
  static_assert(kChunks % kLanes == 0);
  const int first = thread % kLanes;
  for (int r = copied_row<kLanes>(thread); r < rows; r += kThreads / kLanes) {
    const char* row = row_of(r);
    if (source.is_copied<Element>()) {
#pragma unroll
      for (int c = first; c < kChunks; c += kLanes) {
        const bool present = row && c * Tile::kChunkElements < source.format.width;
        copy_async<kChunkBytes>(tile.at(r, c * Tile::kChunkElements),
                                present ? row + c * kChunkBytes : nullptr, present);
      }
    } else {
#pragma unroll 1
      for (int c = 4 * first; c < Tile::kWidth; c += 4 * kLanes) {
        float x[4];
        source.format.load(x, row, c);
        *reinterpret_cast<Vector<Element, 4>*>(tile.at(r, c)) = four_of<Element>(x);
      }
    }
  }
}

// Fills kRows rows of the tile with `rows` rows of its own elements that lie `stride` bytes apart,
// both of whole chunks, and zeros. They are there after a wait for copies. `thread` of kThreads.
template <int kRows, int kThreads, class Tile>
ATTN_DEVICE void copy_rows(const Tile& tile, int thread, const char* first, int64_t stride,
                           int rows, int width) {
  constexpr int kChunks = Tile::kWidth / Tile::kChunkElements;
  constexpr int kLanes = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;  // threads of a row
  constexpr int kStep = kThreads / kLanes;  // rows that are copied at once
  const int row = copied_row<kLanes>(thread), chunk = thread % kLanes;
  const auto copy = [&](auto is_present) {
    const char* from = first + row * stride + chunk * kChunkBytes;
#pragma unroll
    for (int r = 0; r < kRows; r += kStep) {
      if (kRows % kStep != 0 && row + r >= kRows) continue;
#pragma unroll
      for (int c = 0; c < kChunks; c += kLanes) {
        copy_async<kChunkBytes>(tile.at(row + r, (chunk + c) * Tile::kChunkElements),
                                from + c * kChunkBytes, is_present(row + r, chunk + c));
      }
      from += kStep * stride;
    }
  };
  if (rows >= kRows && width == Tile::kWidth) return copy([](int, int) { return true; });
  const int chunks = width / Tile::kChunkElements;
  copy([&](int r, int c) { return r < rows && c < chunks; });
}

}  // namespace attn::cuda
