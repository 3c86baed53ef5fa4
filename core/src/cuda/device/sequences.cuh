// Sequences and pages as kernels find them in device memory, which no host has checked: whatever
// the numbers there, no row outside query or key comes of them.
#pragma once

#include "cuda/device/platform.cuh"
#include "problem/problem.h"

namespace attn::cuda {

ATTN_INLINE constexpr int64_t clamp(int64_t x, int64_t least, int64_t most) {
  return x < least ? least : x > most ? most : x;
}

// The `index`-th sequence, or batch element.
ATTN_DEVICE Sequence sequence_at(const Problem& p, int64_t index) {
  Sequence s = p.sequence(index);
  if (!p.sequences) return s;
  int64_t places = p.Mkv;
  if (p.pages.table) places = p.pages.count > 0 ? p.pages.max_pages * p.pages.size : 0;
  s.q_begin = clamp(s.q_begin, 0, p.Mq);
  s.Mq = clamp(s.Mq, 0, p.Mq - s.q_begin);
  s.k_begin = clamp(s.k_begin, 0, places);
  s.Mkv = clamp(s.Mkv, 0, clamp(places - s.k_begin, 0, p.most_keys));
  s.diagonal = p.band.bottom_right ? s.Mkv - s.Mq : 0;
  s.first = s.diagonal - p.band.left;
  s.last = s.diagonal + p.band.right + 1;
  return s;
}

// The row in which key j of the sequence lies. Places and page sizes fit 32 bits, whose division is
// much the quicker.
ATTN_DEVICE int64_t key_row_of(const Problem& p, const Sequence& s, int64_t j) {
  const int64_t place = s.k_begin + j;
  if (!s.pages) return place;
  const uint32_t size = static_cast<uint32_t>(s.page_size), at = static_cast<uint32_t>(place);
  const int64_t page = clamp(s.pages[at / size], 0, p.pages.count - 1);
  return page * s.page_size + at % size;
}

}  // namespace attn::cuda
