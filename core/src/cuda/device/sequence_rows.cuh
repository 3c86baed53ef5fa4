// Which rows of query and key belong to which sequence, as kernels find out on the device.
//
// A block of threads owns a tile of rows as they lie in memory, and visits every sequence that has
// some of them, in a fixed order: rows that several sequences share are summed in one place, and
// rows that none has get their zeros.
#pragma once

#include "cuda/device/sequences.cuh"
#include "cuda/device/warp.cuh"
#include "problem/problem.h"

namespace attn::cuda {

// Whether it holds for any thread of the block; `flag` is shared memory of its own.
ATTN_DEVICE bool any_of_block(bool mine, int* flag) {
  synchronise_block();
  if (thread_index() == 0) *flag = 0;
  synchronise_block();
  if (mine) *flag = 1;
  synchronise_block();
  return *flag != 0;
}

// Rows of a tile as one sequence counts them. A thread knows two of them: rows g and g + 8 of its
// warp's 16, as fragments of sums have them.
struct RowsOfSequence {
  Sequence sequence;
  int index[2];         // -1: the sequence does not own the row
  int lowest, highest;  // bounds of all indices in the tile
};

// The row of the tile that is a thread's `which`th.
ATTN_DEVICE int own_row(int which) { return warp_index() * 16 + which * 8 + lane() / 4; }

ATTN_DEVICE void place_rows(RowsOfSequence& rows, int64_t first_row, int tile_rows, int64_t begin,
                            int64_t count) {
  for (int r = 0; r < 2; ++r) {
    const int64_t index = first_row + own_row(r) - begin;
    rows.index[r] = index >= 0 && index < count ? static_cast<int>(index) : -1;
  }
  rows.lowest = static_cast<int>(clamp(first_row - begin, 0, count));
  rows.highest = static_cast<int>(clamp(first_row + tile_rows - begin, 0, count)) - 1;
}

// How many of the numbers, which do not descend, are `most` at most.
ATTN_DEVICE int64_t count_up_to(const int32_t* numbers, int64_t count, int64_t most) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (numbers[middle] <= most) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Sequences [next, end), in turn.
struct SequenceRange {
  int64_t next, end;

  // Those that may have some of the rows. Starts [count + 1] do not descend.
  ATTN_DEVICE static SequenceRange of_rows(const int32_t* starts, int64_t count, int64_t first_row,
                                           int rows) {
    return {count_up_to(starts + 1, count, first_row),
            count_up_to(starts, count, first_row + rows - 1)};
  }
};

// Walks the sequences that own query rows [first_row, first_row + tile_rows) of batch element b.
class QuerySequences {
 public:
  ATTN_DEVICE QuerySequences(const Problem& p, int64_t b, int64_t first_row, int tile_rows)
      : p_(p), first_row_(first_row), tile_rows_(tile_rows), range_{b, b + 1} {
    const Sequences& all = p.sequences;
    if (all) range_ = SequenceRange::of_rows(all.q_start, all.count, first_row, tile_rows);
  }

  // Every thread of the block gets the same answer.
  ATTN_DEVICE bool next(RowsOfSequence& rows) {
    while (range_.next < range_.end) {
      rows.sequence = sequence_at(p_, range_.next++);
      place_rows(rows, first_row_, tile_rows_, rows.sequence.q_begin, rows.sequence.Mq);
      if (rows.lowest <= rows.highest) return true;
    }
    return false;
  }

 private:
  const Problem& p_;
  const int64_t first_row_;
  const int tile_rows_;
  SequenceRange range_;
};

// Walks the sequences that own key rows [first_row, first_row + tile_rows) of batch element b. One
// whose pages hold a row more than once comes as often. With lengths of their own keys may lie in
// any order, so that all sequences are looked at. `flag` is shared memory of its own.
class KeySequences {
 public:
  ATTN_DEVICE KeySequences(const Problem& p, int64_t b, int64_t first_row, int tile_rows, int* flag)
      : p_(p), first_row_(first_row), tile_rows_(tile_rows), flag_(flag), range_{b, b + 1} {
    const Sequences& all = p.sequences;
    if (!all) return;
    range_ = all.k_len ? SequenceRange{0, all.count}
                       : SequenceRange::of_rows(all.k_start, all.count, first_row, tile_rows);
  }

  ATTN_DEVICE bool next(RowsOfSequence& rows) {
    if (is_in_pages_ && find_in_pages(rows)) return true;
    while (range_.next < range_.end) {
      rows.sequence = sequence_at(p_, range_.next++);
      const Sequence& s = rows.sequence;
      if (s.Mkv == 0 || s.Mq == 0) continue;
      if (s.pages) {
        page_[0] = page_[1] = page_of(s, s.k_begin);
        if (find_in_pages(rows)) return true;
        continue;
      }
      place_rows(rows, first_row_, tile_rows_, s.k_begin, s.Mkv);
      if (rows.lowest <= rows.highest) return true;
    }
    return false;
  }

 private:
  // Places and page sizes fit 32 bits, whose division is much the quicker.
  ATTN_DEVICE static int page_of(const Sequence& s, int64_t place) {
    return static_cast<int>(static_cast<uint32_t>(place) / static_cast<uint32_t>(s.page_size));
  }

  // Finds the next place of each row in the sequence's pages, from page_ on.
  ATTN_DEVICE bool find_in_pages(RowsOfSequence& rows) {
    const Sequence& s = rows.sequence;
    const int pages = page_of(s, s.k_begin + s.Mkv - 1) + 1;
    bool found = false;
    for (int r = 0; r < 2; ++r) {
      const int64_t row = first_row_ + own_row(r);
      const int64_t page = row / s.page_size, first_place = row - page * s.page_size - s.k_begin;
      rows.index[r] = -1;
      while (page_[r] < pages && rows.index[r] < 0) {
        const int at = page_[r]++;
        if (s.pages[at] != page) continue;
        const int64_t index = at * s.page_size + first_place;
        if (index >= 0 && index < s.Mkv) rows.index[r] = static_cast<int>(index);
      }
      found |= rows.index[r] >= 0;
    }
    rows.lowest = 0;
    rows.highest = static_cast<int>(s.Mkv) - 1;
    is_in_pages_ = any_of_block(found, flag_);
    return is_in_pages_;
  }

  const Problem& p_;
  const int64_t first_row_;
  const int tile_rows_;
  int* const flag_;
  SequenceRange range_;
  int page_[2] = {0, 0};
  bool is_in_pages_ = false;
};

}  // namespace attn::cuda
