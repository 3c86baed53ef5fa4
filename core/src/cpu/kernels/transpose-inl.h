// Transposes parts of matrices.
#pragma once

#include <cstdint>

namespace attn::cpu {
namespace {

// By squares of vectors: `from` has rows kFromStride apart, `to` columns kToStride apart. Both have
// room for whole squares, which are read and written.
template <class S, int64_t kToStride, int64_t kFromStride>
void transpose_by_squares(typename S::Real* to, const typename S::Real* from, int64_t rows,
                          int64_t columns) {
  constexpr int W = S::kWidth;
  for (int64_t r = 0; r < rows; r += W) {
    for (int64_t c = 0; c < columns; c += W) {
      typename S::Vec square[W];
      for (int l = 0; l < W; ++l) square[l] = S::load(from + (r + l) * kFromStride + c);
      S::transpose(square);
      for (int l = 0; l < W; ++l) S::store(to + (c + l) * kToStride + r, square[l]);
    }
  }
}

}  // namespace
}  // namespace attn::cpu
