// Brings what is going to be read or written into the caches.
//
// Functions that only prefetch are always inlined: GCC takes them to be without effect, and drops
// their calls.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

// Prefetches a row's cache lines into the second-level cache.
[[gnu::always_inline]] inline void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

// The same for what is soon to be read, into the first-level cache.
[[gnu::always_inline]] inline void prefetch_row_to_read(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
}

// The same for what is soon to be written.
[[gnu::always_inline]] inline void prefetch_row_to_write(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 1, 3);
}

// Prefetches elements [column, column + count) of a row, if there is one.
template <DType kSource>
[[gnu::always_inline]] inline void prefetch_elements(const char* const* rows, int64_t row,
                                                     int64_t n, int64_t column, int64_t count) {
  if (row >= n) return;
  const int64_t begin = column * element_bytes(kSource);
  const int64_t end = (column + count) * element_bytes(kSource);
  for (int64_t at = round_up(begin, 64); at < end; at += 64) {
    __builtin_prefetch(rows[row] + at, 0, 3);
  }
}

// The rows of n keys for some heads; `rows` are those of the first head. Their lines are prefetched
// evenly over slots in the products that come before: bursts would keep these products' own loads
// waiting.
class RowPrefetcher {
 public:
  RowPrefetcher() = default;
  RowPrefetcher(const HeadRows& x, const char* const* rows, int64_t n, int64_t heads, int64_t width)
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

  // Spreads the prefetches of all lines over this many slots.
  void spread_over(int64_t slots) { slots_ = slots; }

  // Issues the prefetches of the next slots.
  [[gnu::always_inline]] void issue(int64_t slots = 1) {
    if (slots_ == 0) return;
    for (due_ += slots * lines_; due_ >= slots_; due_ -= slots_) {
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
  int64_t due_ = 0;  // lines, times slots_
  int64_t lines_ = 0, slots_ = 0;
  const char* const* rows_ = nullptr;
  const char* const* end_ = nullptr;
  int64_t pieces_ = 1;  // of a key, as many bytes apart as piece_stride_ says
  int64_t piece_ = 0, piece_stride_ = 0, piece_bytes_ = 0;
};

}  // namespace
}  // namespace attn::cpu
