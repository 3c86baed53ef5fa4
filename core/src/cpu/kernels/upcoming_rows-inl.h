// The rows that a worker is going to pack next, prefetched a few at a time while it computes.
#pragma once

#include <cstdint>

#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/rows-inl.h"

namespace attn::cpu {
namespace {

// Some keys and values of a key head, and some of its query rows.
class UpcomingRows {
 public:
  UpcomingRows() = default;
  // Spreads the prefetches over this many calls of prefetch_some.
  UpcomingRows(const Problem& p, const Sequence& sequence, int64_t key_head, KeyRange keys,
               KeyRange queries, int64_t calls)
      : p_(&p),
        sequence_(sequence),
        key_head_(key_head),
        keys_(keys),
        queries_(queries),
        rows_(keys.end - keys.begin + queries.end - queries.begin),
        calls_(calls) {}

  // Always inlined: see prefetch-inl.h.
  [[gnu::always_inline]] void prefetch_some() {
    for (due_ += rows_; due_ >= calls_; due_ -= calls_) {
      if (keys_.begin < keys_.end) {
        const int64_t row = sequence_.key_row(keys_.begin++);
        prefetch(p_->key, row, key_head_, p_->K);
        prefetch(p_->value, row, key_head_, p_->Kv);
      } else if (queries_.begin < queries_.end) {
        const QueryRow at = query_row(*p_, sequence_, key_head_, queries_.begin++);
        prefetch(p_->query, sequence_.q_begin + at.i, at.h, p_->K);
      }
    }
  }

 private:
  [[gnu::always_inline]] void prefetch(const HeadRows& x, int64_t row, int64_t head,
                                       int64_t width) const {
    prefetch_row(x.row(sequence_.b, row, head), width * element_bytes(x.dtype));
  }

  const Problem* p_ = nullptr;
  Sequence sequence_;
  int64_t key_head_ = 0;
  KeyRange keys_ = {0, 0}, queries_ = {0, 0};  // what is left of them
  int64_t rows_ = 0, calls_ = 1;
  int64_t due_ = 0;  // rows, times calls_
};

}  // namespace
}  // namespace attn::cpu
