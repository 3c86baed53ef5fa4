// Writes rows of sums: fragments pass through shared memory, so that whole rows are stored.
#pragma once

#include "cuda/device/nonfinite_rows.cuh"
#include "cuda/device/row_format.cuh"
#include "cuda/device/score_terms.cuh"
#include "cuda/device/warp.cuh"

namespace attn::cuda {

// Writes four consecutive numbers of a row at once, where they lie so. `x` does, in shared memory.
template <class Element>
ATTN_DEVICE bool store_four(char* at, const float* x) {
  using Four = Vector<Element, 4>;
  if (reinterpret_cast<uintptr_t>(at) % sizeof(Four) != 0) return false;
  const FourFloats four = *reinterpret_cast<const FourFloats*>(x);
  *reinterpret_cast<Four*>(at) = four_of<Element>(four.values);
  return true;
}

ATTN_DEVICE bool store_four(char* at, const float* x, DType dtype) {
  switch (dtype) {
    case DType::kBFloat16: return store_four<BFloat16>(at, x);
    case DType::kFloat16: return store_four<Half>(at, x);
    default: return store_four<float>(at, x);
  }
}

// A warp's part of shared memory, through which 16 rows of fragments pass.
template <int kColumns>
struct OutputStage {
  static constexpr int kPart = kColumns <= 128 ? kColumns : kColumns / 2;  // columns at a time
  // Rows of fragments begin in different banks, and at a multiple of 16 bytes.
  static constexpr int kStride = kPart + 8;
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
  // Four numbers from `column` on, of which those count that lie within the row. Of numbers that
  // count rows with infinity or NaN, writes NaN where there are any.
  ATTN_DEVICE static void store_run(char* row, const float* x, int column, int width, DType dtype,
                                    RowsRead read) {
    const int bytes = static_cast<int>(element_bytes(dtype));
    const bool counts = read == RowsRead::kWhetherNonfinite;
    if (!counts && column + 4 <= width && store_four(row + column * bytes, x, dtype)) return;
#pragma unroll 1
    for (int i = 0; i < 4 && column + i < width; ++i) {
      if (counts && !(x[i] > 0.0f)) continue;
      write_number(row + (column + i) * bytes, dtype, counts ? __builtin_nanf("") : x[i]);
    }
  }
};

}  // namespace attn::cuda
