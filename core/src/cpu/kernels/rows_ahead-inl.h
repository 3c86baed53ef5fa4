// Rows of neighbouring heads that are asked for ahead of use, in the order of memory.
#pragma once

#include <cstdint>

#include "cpu/kernels/rows-inl.h"

namespace attn::cpu {
namespace {

// The rows of n keys for some heads; `rows` are those of the first head. A few lines of them are
// asked for at a time, between products, as fast as memory can answer.
class RowsAhead {
 public:
  RowsAhead(const HeadRows& x, const char* const* rows, int64_t n, int64_t heads, int64_t width)
      : rows_(rows), end_(rows + n), piece_bytes_(width * element_bytes(x.dtype)) {
    if (x.stride_h == width) {
      piece_bytes_ *= heads;
    } else {
      pieces_ = heads;
      piece_stride_ = x.stride_h * element_bytes(x.dtype);
    }
    lines_ = n * pieces_ * ((piece_bytes_ + kLineBytes - 1) / kLineBytes);
  }

  // What each of `times` calls of ask() is to take.
  void share(int64_t times) { share_ = times > 0 ? (lines_ + times - 1) / times : 0; }

  // Takes the part of `times` calls.
  void ask(int64_t times = 1) {
    int64_t lines = share_ * times;
    while (lines > 0 && rows_ < end_) {
      const char* const piece = *rows_ + piece_ * piece_stride_;
      const int64_t end = smaller(at_ + lines * kLineBytes, piece_bytes_);
      int64_t at = at_;
      for (; at < end; at += kLineBytes, --lines) __builtin_prefetch(piece + at, 0, 2);
      at_ = at;
      if (at < piece_bytes_) return;
      at_ = 0;
      if (++piece_ < pieces_) continue;
      piece_ = 0;
      ++rows_;
    }
  }

 private:
  static constexpr int64_t kLineBytes = 64;

  const char* const* rows_;
  const char* const* end_;
  int64_t pieces_ = 1;  // of a key, as many bytes apart as piece_stride_ says
  int64_t piece_stride_ = 0;
  int64_t piece_bytes_, lines_, share_ = 0;
  int64_t piece_ = 0, at_ = 0;  // the next one
};

}  // namespace
}  // namespace attn::cpu
