// The parts of the mask that weigh single scores: biases and blocks, of one element.
#pragma once

#include "cuda/device/arithmetic.cuh"
#include "cuda/device/element.cuh"
#include "cuda/device/key_tiles.cuh"
#include "cuda/device/warp.cuh"
#include "problem/problem.h"

namespace attn::cuda {

constexpr float kLog2E = 1.4426950408889634f;

ATTN_DEVICE float infinity() { return __builtin_bit_cast(float, 0x7F800000u); }

// A number of any floating-point dtype that lies at its own alignment.
ATTN_DEVICE float read_number(const char* at, DType dtype) {
  switch (dtype) {
    case DType::kBFloat16: return to_float(*reinterpret_cast<const BFloat16*>(at));
    case DType::kFloat16: return to_float(*reinterpret_cast<const Half*>(at));
    default: return *reinterpret_cast<const float*>(at);
  }
}

ATTN_DEVICE void write_number(char* at, DType dtype, float x) {
  switch (dtype) {
    case DType::kBFloat16: *reinterpret_cast<BFloat16*>(at) = from_float<BFloat16>(x); return;
    case DType::kFloat16: *reinterpret_cast<Half*>(at) = from_float<Half>(x); return;
    default: *reinterpret_cast<float*>(at) = x; return;
  }
}

// tanh(x) to about 4 units in the last place. Near 0 an odd polynomial (weighted minimax on
// [0, 0.6]) keeps what (1 - t) / (1 + t) cancels.
ATTN_DEVICE float tanh_accurate(float x) {
  const float square = x * x, size = fabsf(x);
  float near = fmaf(square, -0.0058951578f, 0.020795971f);
  near = fmaf(near, square, -0.05378383f);
  near = fmaf(near, square, 0.13331924f);
  near = fmaf(near, square, -0.33333299f);
  near = fmaf(near * square, x, x);
  const float t = exp2_approximate(-2.0f * kLog2E * size);
  const float far = (1.0f - t) / (1.0f + t);
  return size < 0.6f ? near : copysignf(far, x);
}

// Which of a rectangle's scores block sparsity lets be seen.
enum class BlocksSeen { kNone, kSome, kAll };

ATTN_DEVICE bool sees_block(const Blocks& blocks, int h, int i, int j) {
  const int size = BlockList::block_size(blocks);
  return BlockList(blocks, h, i / size).holds_all(j, j + 1);
}

// Of queries [i, i_end) and keys [j, j_end), neither empty. Every lane of the warp asks the same.
ATTN_DEVICE BlocksSeen blocks_seen(const Blocks& blocks, int h, int i, int i_end, int j,
                                   int j_end) {
  const int size = BlockList::block_size(blocks), last = (i_end - 1) / size;
  bool sees_any = false, misses_any = false;
  for (int block = i / size + lane(); block <= last; block += kWarpLanes) {
    const BlockList list(blocks, h, block);
    sees_any |= list.first_key(j, j_end) < j_end;
    misses_any |= !list.holds_all(j, j_end);
  }
  if (!any(sees_any)) return BlocksSeen::kNone;
  return any(misses_any) ? BlocksSeen::kSome : BlocksSeen::kAll;
}

// The scores of one query head over one sequence.
struct ScoreTerms {
  const Problem& problem;
  const Sequence& sequence;
  int h;

  // The bias tensor at query i and the key in row `key_row`, in base 2.
  ATTN_DEVICE float tensor_bias(int i, int64_t key_row) const {
    const Scores& bias = problem.bias;
    const char* at = bias.row(sequence.b, h, sequence.q_begin + i) +
                     key_row * bias.stride_n * element_bytes(bias.dtype);
    if (bias.dtype == DType::kBool) return *at ? 0.0f : -infinity();
    return kLog2E * read_number(at, bias.dtype);
  }

  ATTN_DEVICE int64_t distance(int i, int j) const { return j - i - sequence.diagonal; }

  // -slope * |distance|, in base 2.
  ATTN_DEVICE float slope_bias(int64_t distance) const {
    const float slope = kLog2E * read_number(problem.slopes.at(h), problem.slopes.dtype);
    return static_cast<float>(distance < 0 ? -distance : distance) * -slope;
  }

  ATTN_DEVICE float table_bias(int64_t distance) const {
    const HeadParameters& table = problem.table;
    const int64_t R = table.width / 2;
    const int64_t entry = distance < -R ? 0 : distance > R ? 2 * R : distance + R;
    return kLog2E * read_number(table.at(h, entry), table.dtype);
  }

  // The sum of what is added to the score of query i and key j, which lies in row `key_row`.
  ATTN_DEVICE float bias(int i, int j, int64_t key_row) const {
    float sum = problem.bias ? tensor_bias(i, key_row) : 0.0f;
    if (problem.slopes) sum += slope_bias(distance(i, j));
    if (problem.table) sum += table_bias(distance(i, j));
    return sum;
  }
};

}  // namespace attn::cuda
