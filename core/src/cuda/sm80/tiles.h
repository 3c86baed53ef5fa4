// The shapes of the forward's tiles, by the size of an element and the bucket of widths.
#pragma once

#include <cstdint>

namespace attn::cuda::sm80 {

// Widths are filled up with zeros to one of these.
constexpr int kWidths[] = {32, 64, 96, 128, 192, 256};

// Plain kernels of 16-bit elements come in all of them; the others, for which each would cost half
// a minute of compilation, in every other one.
constexpr bool has_width(int element_bytes, int width, bool is_extended) {
  return (element_bytes == 2 && !is_extended) || width == 64 || width == 128 || width == 256;
}

struct ForwardShape {
  int warps;
  int row_tiles;  // of 16 query rows, that a warp owns
  int keys;       // of a tile
  int blocks;     // per multiprocessor, for which registers are spared
};

// A warp with two row tiles reads keys and values from shared memory half as often; wide rows of
// sums leave no registers for that, nor does the whole mask. Plain tiles have as many keys as fit
// registers.
constexpr ForwardShape forward_shape(int element_bytes, int width, bool is_extended) {
  if (element_bytes == 2 && !is_extended) {
    switch (width) {
      case 32: return {4, 2, 64, 3};
      case 64: return {4, 2, 96, 2};
      case 96: return {4, 2, 64, 2};
      case 128: return {4, 2, 64, 2};
      case 192: return {8, 1, 48, 1};
      default: return {4, 1, 48, 2};
    }
  }
  if (element_bytes == 2) {
    return {4, 1, width <= 128 ? 64 : 32, width <= 64 ? 3 : 2};
  }
  const int keys = width <= 64 ? (is_extended ? 64 : 48) : width <= 128 ? 32 : 16;
  const int warps = width == 256 && is_extended ? 3 : 4;
  return {warps, 1, keys, width <= 64 && !is_extended ? 3 : 2};
}

// The bucket of a width of at most 256.
constexpr int bucket(int64_t width, int element_bytes, bool is_extended) {
  for (const int bucket : kWidths) {
    if (width <= bucket && has_width(element_bytes, bucket, is_extended)) return bucket;
  }
  return 0;
}

constexpr int kForwardFactsBytes = 48;

// Rows of queries, keys and values, each 16 bytes longer than its elements; a few facts of the
// block; and with the whole mask a tile of biases, 8 floats wider than its keys.
constexpr int forward_shared_bytes(int element_bytes, int width, bool is_extended) {
  const ForwardShape shape = forward_shape(element_bytes, width, is_extended);
  const int queries = 16 * shape.warps * shape.row_tiles;
  const int biases = is_extended ? queries * (shape.keys + 8) * 4 : 0;
  return (queries + 2 * shape.keys) * (width * element_bytes + 16) + kForwardFactsBytes + biases;
}

// What the plain kernels take besides for a tensor of biases: a tile of it as it lies in memory,
// its rows 16 bytes longer than their elements.
constexpr int forward_bias_bytes(int element_bytes, int width) {
  const ForwardShape shape = forward_shape(element_bytes, width, false);
  return 16 * shape.warps * shape.row_tiles * (shape.keys * element_bytes + 16);
}

}  // namespace attn::cuda::sm80
