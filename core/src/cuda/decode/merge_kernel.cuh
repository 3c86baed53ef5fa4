// Joins attention over chunks of the keys, one warp for each row, forward and backward.
//
// A chunk comes with the log-sum-exp of its scores, or from split keys with their maximum and the
// sum of exponentials to base 2, its output not yet divided: a large score would round away the
// logarithm of the sum.
#pragma once

#include "cuda/device/score_terms.cuh"
#include "problem/merge_problem.h"

namespace attn::cuda::decode {

constexpr int kMergeThreads = 128;
constexpr int kMergeWarps = kMergeThreads / kWarpLanes;

// The chunks of a call, as far as a launch can carry them: where each array begins, and its strides
// unless they are all alike. Chunks evenly spaced in memory need but their distances.
struct ChunkTable {
  static constexpr int kPointers = 4;  // out, lse and their gradients
  static constexpr int kStrides = 3 * kPointers;
  static constexpr int kWords = 448;

  int64_t count = 0;
  int64_t record = 0;  // words of a chunk: its pointers, perhaps its strides; 0: evenly spaced
  MergeChunk first;
  int64_t steps[kPointers] = {};  // bytes from chunk to chunk, evenly spaced
  int64_t words[kWords] = {};

  // Calls visit(array, which) for each of a chunk's arrays.
  template <class Chunk, class Visit>
  ATTN_INLINE static void each_array(Chunk& chunk, Visit&& visit) {
    visit(chunk.out, 0);
    visit(chunk.lse, 1);
    visit(chunk.grad_out, 2);
    visit(chunk.grad_lse, 3);
  }

  ATTN_DEVICE MergeChunk at(int64_t c) const {
    MergeChunk chunk = first;
    const int64_t* own = words + c * record;
    each_array(chunk, [&](auto& array, int which) {
      if (record == 0) {
        if (array) array.data += c * steps[which];
        return;
      }
      array.data = reinterpret_cast<char*>(own[which]);
      if (record == kPointers) return;
      const int64_t* strides = own + kPointers + 3 * which;
      array.stride_b = strides[0];
      array.stride_m = strides[1];
      array.stride_h = strides[2];
    });
    return chunk;
  }
};

struct MergeForwardArguments {
  ChunkTable chunks;
  int64_t M, H, Kv, rows;  // rows: of [B, H, M]
  DType dtype;             // of the chunks' outs
  HeadRows out;
  RowScalars lse;  // optional
  // Of split keys: lse holds maxima to base 2, and this the sums, with lse's strides and steps.
  RowScalars totals;
};

struct MergeBackwardArguments {
  ChunkTable chunks;
  int64_t M, H, Kv, rows;
  DType dtype;
  HeadRows grad_out;
  RowScalars grad_lse;  // optional
  bool wants_grad_lses;
};

struct MergedRow {
  int64_t b, h, m;
};

// The row of the calling warp, or none beyond the last.
template <class Arguments>
ATTN_DEVICE bool own_merged_row(const Arguments& a, MergedRow& at) {
  const int64_t row = int64_t{block_index().x} * kMergeWarps + warp_index();
  at = {row / a.M / a.H, row / a.M % a.H, row % a.M};
  return row < a.rows;
}

ATTN_DEVICE float number_of(const RowScalars& x, const MergedRow& at) {
  return x.at<float>(at.b, at.h, at.m);
}

ATTN_DEVICE float warp_maximum(float x) {
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

ATTN_DEVICE float warp_total(float x) {
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// What the chunks of a row weigh.
struct ChunkWeights {
  float to_base_2;  // of the chunks' lses
  float maximum;    // of the lses
  float reference;  // a finite one: with nothing seen any serves
  float total;      // of the weights

  // `count`, lse_of(c) and total_of(c): of the row's chunks. All lanes get the same.
  template <class LseOf, class TotalOf>
  ATTN_DEVICE ChunkWeights(int64_t count, float factor, LseOf&& lse_of, TotalOf&& total_of)
      : to_base_2(factor) {
    float most = -infinity();
    for (int64_t c = lane(); c < count; c += kWarpLanes) most = fmaxf(most, lse_of(c));
    maximum = warp_maximum(most);
    reference = maximum == -infinity() ? 0.0f : maximum;
    float sum = 0.0f;
    for (int64_t c = lane(); c < count; c += kWarpLanes) sum += weight(lse_of(c)) * total_of(c);
    total = warp_total(sum);
  }

  ATTN_DEVICE float weight(float lse) const {
    return exp2_approximate((lse - reference) * to_base_2);
  }
};

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    merge_forward_kernel(ATTN_ARGUMENTS const MergeForwardArguments a) {
  MergedRow at;
  if (!own_merged_row(a, at)) return;
  const auto lse_of = [&](int64_t c) { return number_of(a.chunks.at(c).lse, at); };
  const auto total_of = [&](int64_t c) {
    if (!a.totals) return 1.0f;
    RowScalars totals = a.totals;
    totals.data += c * a.chunks.steps[1];
    return number_of(totals, at);
  };
  const ChunkWeights weights(a.chunks.count, a.totals ? 1.0f : kLog2E, lse_of, total_of);
  const float scale = weights.total == 0.0f ? 0.0f : 1.0f / weights.total;
  const int step = static_cast<int>(element_bytes(a.dtype));
  char* const to = a.out.row(at.b, at.m, at.h);
  constexpr int kColumns = 4;  // of a lane at once
  for (int64_t begin = lane(); begin < a.Kv; begin += kColumns * kWarpLanes) {
    float sums[kColumns] = {};
    for (int64_t c = 0; c < a.chunks.count; ++c) {
      const float weight = weights.weight(lse_of(c)) * scale;
      if (weight == 0.0f) continue;  // such a chunk may hold NaN
      const char* from = a.chunks.at(c).out.row(at.b, at.m, at.h);
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int64_t column = begin + i * kWarpLanes;
        if (column < a.Kv)
          sums[i] = fmaf(weight, read_number(from + column * step, a.dtype), sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int64_t column = begin + i * kWarpLanes;
      if (column < a.Kv)
        write_number(to + column * element_bytes(a.out.dtype), a.out.dtype, sums[i]);
    }
  }
  if (!a.lse || lane() != 0) return;
  const float maximum = a.totals ? weights.maximum / kLog2E : weights.maximum;
  a.lse.at<float>(at.b, at.h, at.m) =
      weights.total == 0.0f ? -infinity() : maximum + logf(weights.total);
}

// Each warp has room for a number for each chunk: d out . out_c.
ATTN_DEVICE float* products_of_warp(int64_t count) {
  return reinterpret_cast<float*>(shared_memory()) + warp_index() * count;
}

template <int kThreads>
ATTN_KERNEL void ATTN_LAUNCH_BOUNDS(kThreads, 1)
    merge_backward_kernel(ATTN_ARGUMENTS const MergeBackwardArguments a) {
  MergedRow at;
  if (!own_merged_row(a, at)) return;
  const auto lse_of = [&](int64_t c) { return number_of(a.chunks.at(c).lse, at); };
  const ChunkWeights weights(a.chunks.count, kLog2E, lse_of, [](int64_t) { return 1.0f; });
  const float scale = weights.total == 0.0f ? 0.0f : 1.0f / weights.total;
  const auto weight_of = [&](int64_t c) { return weights.weight(lse_of(c)) * scale; };
  const int step = static_cast<int>(element_bytes(a.dtype));
  const int grad_step = static_cast<int>(element_bytes(a.grad_out.dtype));
  const char* grad = a.grad_out.row(at.b, at.m, at.h);
  float* const products = products_of_warp(a.chunks.count);
  float shift = 0.0f;
  for (int64_t c = 0; c < a.chunks.count; ++c) {
    const MergeChunk chunk = a.chunks.at(c);
    const float weight = weight_of(c);
    const bool is_empty = weight == 0.0f;  // its out may hold NaN, and its gradients are 0
    float product = 0.0f;
    for (int64_t column = lane(); column < a.Kv; column += kWarpLanes) {
      const float g = read_number(grad + column * grad_step, a.grad_out.dtype);
      if (chunk.grad_out) {
        write_number(chunk.grad_out.row(at.b, at.m, at.h) + column * step, a.dtype,
                     is_empty ? 0.0f : weight * g);
      }
      if (is_empty || !a.wants_grad_lses) continue;
      product =
          fmaf(read_number(chunk.out.row(at.b, at.m, at.h) + column * step, a.dtype), g, product);
    }
    product = warp_total(product);
    if (lane() == 0) products[c] = product;
    shift = fmaf(-weight, product, shift);
  }
  if (!a.wants_grad_lses) return;
  if (a.grad_lse) shift += number_of(a.grad_lse, at);
  synchronise_warp();
  for (int64_t c = lane(); c < a.chunks.count; c += kWarpLanes) {
    const RowScalars to = a.chunks.at(c).grad_lse;
    const float weight = weight_of(c);
    if (to) to.at<float>(at.b, at.h, at.m) = weight == 0.0f ? 0.0f : weight * (products[c] + shift);
  }
}

}  // namespace attn::cuda::decode
