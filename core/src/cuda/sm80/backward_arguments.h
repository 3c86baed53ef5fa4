// What the kernels of the backward get, and the tiles they work in.
#pragma once

#include <cstdint>

#include "problem/problem.h"

namespace attn::cuda {

constexpr int kWidestTile = 256;  // elements of a row

struct BackwardArguments {
  BackwardProblem problem;  // with its lse_maximum and lse_rest in the workspace
  RowScalars delta;         // rowsum(dO * O) - dLSE of each query row
  // Whether rows can be copied asynchronously.
  bool query_is_aligned = false, key_is_aligned = false, value_is_aligned = false,
       grad_out_is_aligned = false;
  bool stores_grad_bias = false;  // in the pass for dK
  // For each block of threads of the plain kernels, whether its sums hold NaN. The extended ones
  // then take those blocks again, where an excluded row's NaN adds nothing. Null: they take all
  // blocks.
  int32_t* redo_keys = nullptr;
  int32_t* redo_queries = nullptr;
};

// A tile's stationary side has 16 rows for each warp. Wide rows leave less shared memory, and fewer
// registers for sums: everything fits in the 99 KiB a block may have on every GPU since sm_80.
template <class Element, int kWidth>
struct GradientShape {
  static constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(Element));
  static constexpr int kStationary = kRowBytes <= 512 ? 64 : 32;
  static constexpr int kStreamed = kRowBytes <= 128 ? 64 : kRowBytes <= 256 ? 32 : 16;
  // Streamed queries that a warp turns into P and dS at once, beside the sums of dK and dV.
  static constexpr int kMostAtOnce = kWidth > 64 ? 16 : 32;
  static constexpr int kAtOnce = kStreamed < kMostAtOnce ? kStreamed : kMostAtOnce;
  static constexpr int kStages = kRowBytes <= 384 ? 2 : 1;  // of streamed tiles
  static constexpr int kThreads = 2 * kStationary;
  static constexpr bool kSumsBoth = kWidth <= 128;  // dK and dV at once
};

// Tiles of the stationary side.
template <class Element, int kWidth>
constexpr int64_t tiles_of(int64_t rows) {
  constexpr int64_t kRows = GradientShape<Element, kWidth>::kStationary;
  return (rows + kRows - 1) / kRows;
}

// How far a key may be from a query: -Mq and more, less than Mkv.
constexpr int64_t distances_of(const Problem& p) { return p.Mq + p.Mkv; }

}  // namespace attn::cuda
