// One validated attention call, in the terms the kernels think in. Plain data: no maths, no STL.
// Its functions are always inlined: an out-of-line copy compiled for one instruction set could
// otherwise be the one the linker keeps for every machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attn {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kBool };

[[gnu::always_inline]] constexpr int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kBool: return 1;
  }
  return 0;
}

// An array [B, M, H, width] whose last axis is contiguous. Strides in elements.
struct HeadRows {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride_b = 0;
  int64_t stride_m = 0;
  int64_t stride_h = 0;

  [[gnu::always_inline]] explicit operator bool() const { return data != nullptr; }
  [[gnu::always_inline]] char* row(int64_t b, int64_t m, int64_t h) const {
    return data + (b * stride_b + m * stride_m + h * stride_h) * element_bytes(dtype);
  }
};

// An array [B, Hq, Mq] of one number per query row: lse and its gradient. Float32, or float64 for
// float64 problems. Strides in elements.
struct RowScalars {
  char* data = nullptr;
  int64_t stride_b = 0;
  int64_t stride_h = 0;
  int64_t stride_m = 0;

  [[gnu::always_inline]] explicit operator bool() const { return data != nullptr; }
  template <class Real>
  [[gnu::always_inline]] Real& at(int64_t b, int64_t h, int64_t m) const {
    return reinterpret_cast<Real*>(data)[b * stride_b + h * stride_h + m * stride_m];
  }
};

// A tensor indexed by (b, h, i, j), broadcast where its stride is 0: the bias and its gradient.
struct Scores {
  char* data = nullptr;
  DType dtype = DType::kFloat32;  // kBool: a keep-mask
  int64_t stride_b = 0;
  int64_t stride_h = 0;
  int64_t stride_m = 0;  // along queries
  int64_t stride_n = 0;  // along keys

  [[gnu::always_inline]] explicit operator bool() const { return data != nullptr; }
  [[gnu::always_inline]] char* row(int64_t b, int64_t h, int64_t i) const {
    return data + (b * stride_b + h * stride_h + i * stride_m) * element_bytes(dtype);
  }
};

struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Query i sees keys j with -left <= j - (i + shift) <= right. left and right are clamped so that
// no sum of them overflows.
struct Band {
  int64_t left = 0;
  int64_t right = 0;
  int64_t shift = 0;
};

struct Dropout {
  bool enabled = false;
  uint32_t key[2] = {0, 0};  // derived from seed and offset, see attn/mask.h
  uint32_t threshold = 0;    // a draw below it drops the probability
  double keep_scale = 1.0;   // 1 / (1 - p); 0 if p = 1
};

// What forward and backward share.
struct Problem {
  int64_t B = 0, Mq = 0, Mkv = 0, Hq = 0, Hkv = 0, G = 0, K = 0, Kv = 0;
  double scale = 1.0;
  HeadRows query, key, value;  // alike in dtype
  HeadRows out;                // forward: written; backward: read
  RowScalars lse;              // forward: written if present; backward: read
  Band band;
  Scores bias;
  Dropout dropout;

  // The keys that query i sees by the band alone; empty ranges have begin == end.
  [[gnu::always_inline]] KeyRange keys_of(int64_t i) const {
    int64_t begin = i + band.shift - band.left;
    int64_t end = i + band.shift + band.right + 1;
    begin = begin < 0 ? 0 : begin > Mkv ? Mkv : begin;
    end = end < begin ? begin : end > Mkv ? Mkv : end;
    return {begin, end};
  }
};

struct ForwardProblem : Problem {};

struct BackwardProblem : Problem {
  HeadRows grad_out;
  RowScalars grad_lse;                        // optional
  HeadRows grad_query, grad_key, grad_value;  // written where present
  Scores grad_bias;                           // written where present; stride 0 sums
  // Whether grad_bias sums over an axis; an axis of extent 1 in the problem is not summed.
  bool grad_bias_sums_b = false, grad_bias_sums_h = false, grad_bias_sums_m = false,
       grad_bias_sums_n = false;
};

}  // namespace attn
