// Writes rows of sums: fragments pass through shared memory, so that whole rows are stored.
#pragma once

#include "cuda/device/score_terms.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/sm80/nonfinite_rows.cuh"

namespace attn::cuda {

// Four consecutive numbers of a row; `count` of them lie within it. Of those that count rows with
// infinity or NaN, writes NaN where there are any.
template <class Element>
ATTN_DEVICE void store_four(char* at, const float (&x)[4], int count, RowsRead read) {
  struct alignas(4 * sizeof(Element)) Four {
    Element values[4];
  };
  Element* to = reinterpret_cast<Element*>(at);
  const bool counts = read == RowsRead::kWhetherNonfinite;
  if (!counts && count >= 4 && reinterpret_cast<uintptr_t>(at) % sizeof(Four) == 0) {
    *reinterpret_cast<Four*>(to) = {{from_float<Element>(x[0]), from_float<Element>(x[1]),
                                     from_float<Element>(x[2]), from_float<Element>(x[3])}};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i >= count) continue;
    if (!counts) {
      to[i] = from_float<Element>(x[i]);
    } else if (x[i] > 0.0f) {
      to[i] = from_float<Element>(__builtin_nanf(""));
    }
  }
}

// A warp's part of shared memory, through which 16 rows of fragments pass.
template <int kColumns>
struct OutputStage {
  static constexpr int kPart = kColumns <= 128 ? kColumns : kColumns / 2;  // columns at a time
  static constexpr int kStride = kPart + 4;
  static constexpr int kBytes = 16 * kStride * static_cast<int>(sizeof(float));

  float* data;

  // Writes the first `rows` of 16 rows, `width` numbers of each, where row_of(r) is the address of
  // row r. `factors` multiply the two rows of lane `mine`.
  template <class RowOf>
  ATTN_DEVICE void store(const Sums<kColumns>& sums, const float (&factors)[2], int rows, int width,
                         DType dtype, RowsRead read, int mine, RowOf&& row_of) const {
#pragma unroll
    for (int part = 0; part < kColumns; part += kPart) {
      if (part >= width) return;
      synchronise_warp();
#pragma unroll
      for (int n = 0; n < kPart / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = mine / 4 + e / 2 * 8, column = 8 * n + mine % 4 * 2 + e % 2;
          data[row * kStride + column] = sums.values[part / 8 + n][e] * factors[e / 2];
        }
      }
      synchronise_warp();
#pragma unroll 1
      for (int at = mine; at < rows * (kPart / 4); at += kWarpLanes) {
        const int row = at / (kPart / 4), column = at % (kPart / 4) * 4;
        store_run(row_of(row), data + row * kStride + column, part + column, width, dtype, read);
      }
    }
  }

 private:
  ATTN_DEVICE static void store_run(char* row, const float* from, int column, int width,
                                    DType dtype, RowsRead read) {
    const float x[4] = {from[0], from[1], from[2], from[3]};
    char* at = row + column * element_bytes(dtype);
    switch (dtype) {
      case DType::kBFloat16: return store_four<BFloat16>(at, x, width - column, read);
      case DType::kFloat16: return store_four<Half>(at, x, width - column, read);
      default: return store_four<float>(at, x, width - column, read);
    }
  }
};

}  // namespace attn::cuda
