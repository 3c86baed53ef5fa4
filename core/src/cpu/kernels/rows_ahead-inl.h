// Rows of neighbouring heads that are asked for ahead of use, in the order of memory.
#pragma once

#include <cstdint>

#include "cpu/kernels/rows-inl.h"

namespace attn::cpu {
namespace {

// The rows of n keys for some heads; `rows` are those of the first head.
struct RowsAhead {
  const char* const* rows;
  int64_t n;
  int64_t pieces = 1;  // of a key, as many bytes apart as piece_stride says
  int64_t piece_stride = 0;
  int64_t piece_bytes;

  RowsAhead(const HeadRows& x, const char* const* rows_of_keys, int64_t num_keys, int64_t heads,
            int64_t width)
      : rows(rows_of_keys), n(num_keys), piece_bytes(width * element_bytes(x.dtype)) {
    if (x.stride_h == width) {
      piece_bytes *= heads;
    } else {
      pieces = heads;
      piece_stride = x.stride_h * element_bytes(x.dtype);
    }
  }

  // Asks for one of `parts` equal parts. Inlined as prefetch_row is.
  [[gnu::always_inline]] void ask(int64_t part, int64_t parts) const {
    const int64_t total = n * pieces;
    for (int64_t at = total * part / parts; at < total * (part + 1) / parts; ++at) {
      prefetch_row(rows[at / pieces] + at % pieces * piece_stride, piece_bytes);
    }
  }
};

}  // namespace
}  // namespace attn::cpu
