// The rows that a worker is going to read next, prefetched a few at a time while it computes.
#pragma once

#include <cstdint>

#include "cpu/kernels/prefetch-inl.h"
#include "cpu/kernels/rows-inl.h"

namespace attn::cpu {
namespace {

// Spreads visits of rows evenly over calls.
struct Pace {
  int64_t rows = 0, calls = 1;
  int64_t due = 0;  // rows, times calls

  // Visits what is due at one more call. Always inlined: see prefetch-inl.h.
  template <class F>
  [[gnu::always_inline]] void step(F&& visit) {
    for (due += rows; due >= calls; due -= calls) visit();
  }
};

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
        pace_{.rows = keys.end - keys.begin + queries.end - queries.begin, .calls = calls} {}

  // Always inlined: see prefetch-inl.h.
  [[gnu::always_inline]] void prefetch_some() {
    pace_.step([&]() __attribute__((always_inline)) {
      if (keys_.begin < keys_.end) {
        const int64_t row = sequence_.key_row(keys_.begin++);
        prefetch(p_->key, row, key_head_, p_->K);
        prefetch(p_->value, row, key_head_, p_->Kv);
      } else if (queries_.begin < queries_.end) {
        const QueryRow at = query_row(*p_, sequence_, key_head_, queries_.begin++);
        prefetch(p_->query, sequence_.q_begin + at.i, at.h, p_->K);
      }
    });
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
  Pace pace_;
};

// Query rows of a key head in several arrays, one array after the other.
class UpcomingQueries {
 public:
  UpcomingQueries() = default;
  UpcomingQueries(const Problem& p, const Sequence& sequence, int64_t key_head, int64_t calls)
      : p_(&p), sequence_(sequence), key_head_(key_head), pace_{.calls = calls} {}

  // `rows`, as query_row numbers them, of `width` elements in `x`. For up to four arrays.
  void add(const HeadRows& x, int64_t width, KeyRange rows) {
    parts_[num_parts_++] = {&x, width * element_bytes(x.dtype), rows};
    pace_.rows += rows.end - rows.begin;
  }

  // Always inlined: see prefetch-inl.h.
  [[gnu::always_inline]] void prefetch_some() {
    pace_.step([&]() __attribute__((always_inline)) {
      while (part_ < num_parts_ && parts_[part_].left.begin >= parts_[part_].left.end) ++part_;
      if (part_ == num_parts_) return;
      Part& part = parts_[part_];
      const QueryRow at = query_row(*p_, sequence_, key_head_, part.left.begin++);
      prefetch_row(query_row_of(*part.x, sequence_, at), part.bytes);
    });
  }

 private:
  struct Part {
    const HeadRows* x;
    int64_t bytes;  // of a row
    KeyRange left;
  };

  const Problem* p_ = nullptr;
  Sequence sequence_;
  int64_t key_head_ = 0;
  Part parts_[4];
  int num_parts_ = 0, part_ = 0;
  Pace pace_;
};

}  // namespace
}  // namespace attn::cpu
