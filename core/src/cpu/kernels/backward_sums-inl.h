// How the backward is cut into blocks of keys, and the sums of gradients that blocks share.
#pragma once

#include <cstdint>

#include "cpu/kernels/query_tile-inl.h"
#include "cpu/kernels/scratch-inl.h"
#include "cpu/kernels/turn-inl.h"

namespace attn::cpu {
namespace {

// Whether the pass makes gradients of queries or of their position features.
inline bool wants_query_rows(const BackwardProblem& p) {
  return p.grad_query || p.grad_position_query;
}

// Where a gradient [B, M, H, width] is summed: in its own rows, if these are whole vectors of
// Reals, else in scratch rows of whole vectors.
template <class S>
HeadRows rows_of_sum(Scratch& scratch, const HeadRows& gradient, int64_t B, int64_t M, int64_t H,
                     int64_t width) {
  using Real = typename S::Real;
  constexpr DType kReal = sizeof(Real) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
  if (gradient.dtype == kReal && width % S::kWidth == 0) return gradient;
  const int64_t columns = round_up(width, S::kWidth);
  return {.data = reinterpret_cast<char*>(scratch.take<Real>(B * M * H * columns)),
          .dtype = kReal,
          .stride_b = M * H * columns,
          .stride_m = H * columns,
          .stride_h = columns};
}

template <class Op>
struct BackwardTiling {
  using Real = typename Op::S::Real;
  // Of a block of keys and its gradients; CPUs with AVX-512 have larger caches.
  static constexpr int64_t kBlockBytes = (sizeof(typename Op::S::Vec) == 64 ? 1024 : 384) * 1024;

  GradientWidths<Op> widths;
  int64_t query_columns;  // of dQ and the gradient of positions' query features, in whole vectors
  int64_t block_keys;
  int64_t blocks;     // of the longest sequence; at least 1, so that dQ is written without keys
  int64_t tile_rows;  // query rows per tile
  int64_t tiles;      // of all query rows of a key head, at most
  int64_t tasks;      // a block each

  explicit BackwardTiling(const BackwardProblem& p) : widths(p) {
    const int64_t features = p.grad_position_query ? p.positions.of_queries.width : 0;
    query_columns = widths.key_columns + round_up(features, Op::S::kWidth);
    const int64_t key_bytes = static_cast<int64_t>(sizeof(Real)) *
                              (widths.key_units + widths.value_units + widths.key_columns +
                               widths.value_columns + widths.key_columns / Op::kDepth);
    // A power of two, so that usual lengths are cut into equal blocks.
    block_keys = 512;
    while (block_keys > kTileKeys && block_keys * key_bytes > kBlockBytes) block_keys /= 2;
    block_keys = smaller(block_keys, larger(round_up(p.most_keys, kTileKeys), kTileKeys));
    blocks = larger((p.most_keys + block_keys - 1) / block_keys, 1);
    // A tile within a block of queries has one list of key blocks to skip by.
    const bool small_blocks = p.blocks && p.blocks.size >= 32 && p.blocks.size < kTileQueries;
    tile_rows = small_blocks ? p.blocks.size : kTileQueries;
    tiles = p.B * p.G * p.Mq / tile_rows + p.num_sequences;
    tasks = p.num_sequences * p.Hkv * blocks;
  }

  // Where the tiles of a sequence begin, among all of a key head.
  int64_t first_tile(const Problem& p, const Sequence& sequence) const {
    return p.G * (sequence.b * p.Mq + sequence.q_begin) / tile_rows + sequence.index;
  }
};

// Sums of dK and dV where several sequences may own one row: [Mkv, Hkv, K] and [Mkv, Hkv, Kv] in
// Reals, each width in whole vectors. Tasks of a key head add to them in their order.
template <class Op>
struct GradKeySum {
  using Real = typename Op::S::Real;
  Real* keys = nullptr;
  Real* values = nullptr;
  Turn* turns = nullptr;  // [Hkv]: of tasks
  bool used;

  GradKeySum(Scratch& scratch, const BackwardProblem& p, const BackwardTiling<Op>& t)
      : used(p.sequences.k_len != nullptr) {
    if (!used) return;
    keys = scratch.take<Real>(p.Mkv * p.Hkv * t.widths.key_columns);
    values = scratch.take<Real>(p.Mkv * p.Hkv * t.widths.value_columns);
    turns = scratch.take<Turn>(p.Hkv);
  }
};

// dQ, and the gradient of positions' query features, of all blocks so far; none if every tile meets
// a single block.
template <class Op>
struct GradQuerySum {
  HeadRows queries, positions;
  Turn* turns;  // [Hkv, tiles]: of blocks
  int64_t num_turns;

  GradQuerySum(Scratch& scratch, const BackwardProblem& p, const BackwardTiling<Op>& t) {
    const bool used = t.blocks > 1 && wants_query_rows(p);
    const auto rows = [&](const HeadRows& gradient, int64_t width) {
      if (!used || !gradient) return HeadRows{};
      return rows_of_sum<typename Op::S>(scratch, gradient, p.B, p.Mq, p.Hq, width);
    };
    num_turns = used ? p.Hkv * t.tiles : 0;
    queries = rows(p.grad_query, p.K);
    positions = rows(p.grad_position_query, p.positions.of_queries.width);
    turns = scratch.take<Turn>(num_turns);
  }
};

}  // namespace
}  // namespace attn::cpu
