// A tile of what is added to scores, in shared memory: a block of threads computes it together, and
// each lane finds there what its fragments of scores need.
#pragma once

#include "cuda/device/key_tiles.cuh"
#include "cuda/device/products.cuh"
#include "cuda/device/score_terms.cuh"
#include "cuda/device/sequences.cuh"

namespace attn::cuda {

// What a tensor of biases adds, in base 2, by the type it holds.
template <class Element>
ATTN_DEVICE float bias_of(Element x) {
  return kLog2E * to_float(x);
}
ATTN_DEVICE float bias_of(bool keeps) { return keeps ? 0.0f : -infinity(); }

// Consecutive keys of a query, whose biases one thread computes.
struct BiasRun {
  static constexpr int kKeys = 8;

  const Problem& p;
  const Sequence& s;
  int h, query, key;
  float biases[kKeys] = {};

  ATTN_DEVICE void add_tensor() {
    switch (p.bias.dtype) {
      case DType::kBool: return add_tensor_of<bool>();
      case DType::kBFloat16: return add_tensor_of<BFloat16>();
      case DType::kFloat16: return add_tensor_of<Half>();
      default: return add_tensor_of<float>();
    }
  }

  template <class Element>
  ATTN_DEVICE void add_tensor_of() {
    constexpr int kBytes = kKeys * static_cast<int>(sizeof(Element));
    struct alignas(kBytes < 16 ? kBytes : 16) Run {
      Element values[kKeys];
    };
    const int keys = static_cast<int>(s.Mkv) - key;
    const auto* row = reinterpret_cast<const Element*>(p.bias.row(s.b, h, s.q_begin + query));
    const Element* first = row + (s.k_begin + key) * p.bias.stride_n;
    if (!s.pages && p.bias.stride_n == 1 && keys >= kKeys &&
        reinterpret_cast<uintptr_t>(first) % alignof(Run) == 0) {
      const Run run = *reinterpret_cast<const Run*>(first);
#pragma unroll
      for (int c = 0; c < kKeys; ++c) biases[c] += bias_of(run.values[c]);
      return;
    }
#pragma unroll
    for (int c = 0; c < kKeys; ++c) {
      if (c >= keys) continue;
      const int64_t at = s.pages ? key_row_of(p, s, key + c) * p.bias.stride_n
                                 : (s.k_begin + key + c) * p.bias.stride_n;
      biases[c] += bias_of(row[at]);
    }
  }

  ATTN_DEVICE int distance() const { return key - query - static_cast<int>(s.diagonal); }

  ATTN_DEVICE void add_slope() {
    const float slope = kLog2E * read_number(p.slopes.at(h), p.slopes.dtype);
#pragma unroll
    for (int c = 0; c < kKeys; ++c) {
      biases[c] = fmaf(static_cast<float>(abs(distance() + c)), -slope, biases[c]);
    }
  }

  ATTN_DEVICE void add_table() {
    const int64_t R = p.table.width / 2;
#pragma unroll
    for (int c = 0; c < kKeys; ++c) {
      const int64_t entry = clamp(distance() + c, -R, R) + R;
      biases[c] += kLog2E * read_number(p.table.at(h, entry), p.table.dtype);
    }
  }

  ATTN_DEVICE void exclude_blocks() {
    BlockRow row(p.blocks, h, query);
#pragma unroll
    for (int c = 0; c < kKeys; ++c) {
      if (!row.sees(key + c)) biases[c] = -infinity();
    }
  }
};

template <int kRows, int kKeys, int kThreads>
struct BiasTile {
  static constexpr int kStride = kKeys + 8;  // so that quads that read two floats share no bank
  static constexpr int kBytes = kRows * kStride * static_cast<int>(sizeof(float));

  float* data;

  // Computes the biases of queries from `query` on, and of keys from `key` on. Rows beyond the last
  // query repeat it; keys beyond the last get anything finite.
  ATTN_DEVICE void fill(const Problem& p, const Sequence& s, int h, int query, int key,
                        bool excludes_blocks) const {
    constexpr int kRuns = kKeys / BiasRun::kKeys;
    const int last = static_cast<int>(s.Mq) - 1;
#pragma unroll 1
    for (int at = thread_index(); at < kRows * kRuns; at += kThreads) {
      const int r = at / kRuns, c = at % kRuns * BiasRun::kKeys;
      BiasRun run{p, s, h, query + r < last ? query + r : last, key + c};
      if (p.bias) run.add_tensor();
      if (p.slopes) run.add_slope();
      if (p.table) run.add_table();
      if (excludes_blocks) run.exclude_blocks();
#pragma unroll
      for (int i = 0; i < BiasRun::kKeys; ++i) data[r * kStride + c + i] = run.biases[i];
    }
  }

  // Adds `more` to what lies there for 16 rows and 16 columns, in the same lanes that add_to reads
  // it.
  ATTN_DEVICE void add(const float (&more)[2][4], int row, int column) const {
#pragma unroll
    for (int at = 0; at < 8; ++at) {
      const int e = at % 4;
      float& bias = data[(row + lane() / 4 + e / 2 * 8) * kStride + column + at / 4 * 8 +
                         lane() % 4 * 2 + e % 2];
      // What is excluded stays so: its positions may be NaN.
      if (bias != -infinity()) bias += more[at / 4][e];
    }
  }

  // Adds them to the scores of rows from `row` on.
  ATTN_DEVICE void add_to(Sums<kKeys>& scores, int row) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* biases = data + (row + lane() / 4 + 8 * r) * kStride + lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          // Selected rather than added: a score that is excluded may be NaN.
          float& x = scores.values[n][2 * r + e];
          const float bias = biases[8 * n + e];
          x = bias == -infinity() ? -infinity() : x + bias;
        }
      }
    }
  }
};

}  // namespace attn::cuda
