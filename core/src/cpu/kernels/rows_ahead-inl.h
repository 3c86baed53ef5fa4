// Rows of neighbouring heads that are asked for ahead of use, in the order of memory.
#pragma once

#include <cstdint>

#include "cpu/kernels/rows-inl.h"

namespace attn::cpu {
namespace {

// The rows of n keys for some heads; `rows` are those of the first head. Their lines are asked for
// evenly over the moments of the products that come before: bursts would keep these products' own
// loads waiting.
class RowsAhead {
 public:
  RowsAhead() = default;
  RowsAhead(const HeadRows& x, const char* const* rows, int64_t n, int64_t heads, int64_t width)
      : rows_(rows), end_(rows + n), piece_bytes_(width * element_bytes(x.dtype)) {
    if (x.stride_h == width) {
      piece_bytes_ *= heads;
    } else {
      pieces_ = heads;
      piece_stride_ = x.stride_h * element_bytes(x.dtype);
    }
    lines_ = n * pieces_ * ((piece_bytes_ + kLineBytes - 1) / kLineBytes);
    if (n > 0) begin_piece();
  }

  // Asks for all of the lines in the course of this many moments.
  void spread_over(int64_t moments) { moments_ = moments; }

  // Asks for what is due after some more of the moments. Always inlined: GCC takes a function that
  // only prefetches for one without effect, and drops the call.
  [[gnu::always_inline]] void ask(int64_t moments = 1) {
    if (moments_ == 0) return;
    for (due_ += moments * lines_; due_ >= moments_; due_ -= moments_) {
      if (at_ >= piece_end_ && !next_piece()) return;
      __builtin_prefetch(at_, 0, 2);
      at_ += kLineBytes;
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;

  void begin_piece() {
    at_ = *rows_ + piece_ * piece_stride_;
    piece_end_ = at_ + piece_bytes_;
  }
  bool next_piece() {
    if (rows_ == end_) return false;
    if (++piece_ == pieces_) {
      piece_ = 0;
      if (++rows_ == end_) return false;
    }
    begin_piece();
    return true;
  }

  const char* at_ = nullptr;  // the next line
  const char* piece_end_ = nullptr;
  int64_t due_ = 0;  // lines, times moments_
  int64_t lines_ = 0, moments_ = 0;
  const char* const* rows_ = nullptr;
  const char* const* end_ = nullptr;
  int64_t pieces_ = 1;  // of a key, as many bytes apart as piece_stride_ says
  int64_t piece_ = 0, piece_stride_ = 0, piece_bytes_ = 0;
};

}  // namespace
}  // namespace attn::cpu
