// What the kernels of the backward get, and the tiles they work in.
#pragma once

#include <cstdint>

#include "problem/problem.h"

namespace attn::cuda {

constexpr int kWidestTile = 256;  // elements of a row
// What is rare takes rows of any dtype as these, so that one kernel serves all.
using RareElement = float;

struct BackwardArguments {
  BackwardProblem problem;  // with its lse_maximum and lse_rest in the workspace
  RowScalars delta;         // rowsum(dO * O) - dLSE of each query row
  // Whether rows can be copied asynchronously.
  bool query_is_aligned = false, key_is_aligned = false, value_is_aligned = false,
       grad_out_is_aligned = false;
  bool stores_grad_bias = false;  // in the pass for dK
  bool is_one_pass = false;       // the plain kernels' work is done in one pass
  bool keeps_rests = false;       // of P and dS, in the extended kernels, which then do all
  // For each block of threads of the plain kernels, whether its sums hold NaN; at first 0. The
  // extended ones then take those blocks again, where an excluded row's NaN adds nothing. Null:
  // they take all blocks.
  int32_t* redo_keys = nullptr;
  int32_t* redo_queries = nullptr;
  int32_t* redo_bias = nullptr;  // [B, Hq], likewise for a dBias that is summed
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

using RareShape = GradientShape<RareElement, kWidestTile>;

// Tiles of the stationary side.
template <class Shape>
constexpr int64_t tiles_of(int64_t rows) {
  return (rows + Shape::kStationary - 1) / Shape::kStationary;
}

// How far a key may be from a query: -Mq and more, less than Mkv.
constexpr int64_t distances_of(const Problem& p) { return p.Mq + p.Mkv; }

}  // namespace attn::cuda
