// Which tiles of keys a tile of queries skips, which it sees whole, and which in part.
#pragma once

#include "cuda/device/sequences.cuh"
#include "cuda/device/shuffle.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/limits.h"
#include "problem/problem.h"

namespace attn::cuda {

// The band and the end of a sequence, for a tile of its queries: row i of the tile sees the keys
// [i + first, i + last) of the sequence's `keys`.
struct KeyBand {
  int first, last, keys;

  ATTN_DEVICE KeyBand(const Band& band, const Sequence& s, int first_query)
      : first(static_cast<int>(s.diagonal) + first_query - near(band.left)),
        last(static_cast<int>(s.diagonal) + first_query + near(band.right) + 1),
        keys(static_cast<int>(s.Mkv)) {}

  // The same of the queries from number `row` on.
  ATTN_DEVICE KeyBand from(int row) const {
    KeyBand band = *this;
    band.first += row;
    band.last += row;
    return band;
  }
  // Clamped to the keys that there are.
  ATTN_DEVICE int clamped(int key) const { return key < 0 ? 0 : key < keys ? key : keys; }
  ATTN_DEVICE int begin(int row) const { return clamped(row + first); }
  ATTN_DEVICE int end(int row) const { return clamped(row + last); }
  // Whether each of `rows` rows sees all keys [key, key_end).
  ATTN_DEVICE bool is_whole(int rows, int key, int key_end) const {
    return key >= begin(rows - 1) && key_end <= end(0);
  }

 private:
  ATTN_DEVICE static int near(int64_t distance) {
    return static_cast<int>(distance < -kMostRows  ? -kMostRows
                            : distance < kMostRows ? distance
                                                   : kMostRows);
  }
};

// The keys that a tile's first `rows` rows see by the band; `begin` is that of a tile of keys.
struct KeySpan {
  int begin = 0, end = 0;
};

template <int kKeys>
ATTN_DEVICE KeySpan key_span(const KeyBand& band, int rows) {
  const int begin = band.begin(0) / kKeys * kKeys;
  const int end = band.last > band.first ? band.end(rows - 1) : 0;
  return begin < end ? KeySpan{begin, end} : KeySpan{};
}

// The ascending list of key blocks that a block of queries sees.
struct BlockList {
  const int32_t* begin;
  const int32_t* end;
  int size;

  ATTN_DEVICE BlockList(const Blocks& blocks, int64_t h, int query_block)
      : size(block_size(blocks)) {
    const int32_t* offsets = blocks.offsets + h * blocks.stride_h + query_block;
    begin = blocks.indices + clamp(offsets[0], 0, blocks.count);
    end = blocks.indices + clamp(offsets[1], 0, blocks.count);
  }

  ATTN_DEVICE static int block_size(const Blocks& blocks) {
    return static_cast<int>(blocks.size < kMostRows ? blocks.size : kMostRows);
  }

  // The first entry that is not before block `block`.
  ATTN_DEVICE const int32_t* find(int block) const {
    const int32_t* at = begin;
    for (int64_t count = end - begin; count > 0;) {
      const int64_t half = count / 2;
      if (at[half] < block) {
        at += half + 1;
        count -= half + 1;
      } else {
        count = half;
      }
    }
    return at;
  }

  // The first key from `from` on, which is below `limit`; `limit` if there is none.
  ATTN_DEVICE int first_key(int from, int limit) const {
    const int32_t* at = find(from / size);
    if (at >= end) return limit;
    const int64_t key = static_cast<int64_t>(*at) * size;
    return key < from ? from : key < limit ? static_cast<int>(key) : limit;
  }

  ATTN_DEVICE bool holds_all(int from, int to) const {
    const int first = from / size, last = (to - 1) / size;
    const int32_t* at = find(first);
    return at + (last - first) < end && *at == first && at[last - first] == last;
  }
};

// Block sparsity as a warp sees it that attends queries [first, first + rows): the same in each.
class BlockTiles {
 public:
  ATTN_DEVICE BlockTiles(const Blocks& blocks, int64_t h, int first, int rows)
      : blocks_(blocks), h_(h) {
    const int size = BlockList::block_size(blocks);
    first_ = first / size;
    last_ = (first + rows - 1) / size;
  }

  // The first key from `from` on that any of the queries sees; `limit` if there is none below it.
  ATTN_DEVICE int first_key(int from, int limit) const {
    int nearest = limit;
    for (int block = first_ + lane(); block <= last_; block += kWarpLanes) {
      const int key = BlockList(blocks_, h_, block).first_key(from, limit);
      nearest = key < nearest ? key : nearest;
    }
    for (int mask = 1; mask < kWarpLanes; mask *= 2) {
      const int other = shuffle_xor(nearest, mask);
      nearest = other < nearest ? other : nearest;
    }
    return nearest;
  }

  // Whether every query sees all keys [from, to).
  ATTN_DEVICE bool sees_all(int from, int to) const {
    bool misses = false;
    for (int block = first_ + lane(); block <= last_; block += kWarpLanes) {
      misses |= !BlockList(blocks_, h_, block).holds_all(from, to);
    }
    return !any(misses);
  }

 private:
  const Blocks& blocks_;
  int64_t h_;
  int first_, last_;
};

// Whether a query sees a key by its block list; remembers the last run of keys that are alike.
class BlockRow {
 public:
  ATTN_DEVICE BlockRow(const Blocks& blocks, int64_t h, int query)
      : list_(blocks, h, query / BlockList::block_size(blocks)) {}

  ATTN_DEVICE bool sees(int key) {
    if (key < run_begin_ || key >= run_end_) {
      const int block = key / list_.size;
      const int32_t* at = list_.find(block);
      sees_run_ = at < list_.end && *at == block;
      run_begin_ = block * list_.size;
      const int64_t run_end = static_cast<int64_t>(block + 1) * list_.size;
      run_end_ = static_cast<int>(run_end < kMostRows ? run_end : kMostRows);
    }
    return sees_run_;
  }

 private:
  BlockList list_;
  int run_begin_ = 0, run_end_ = 0;
  bool sees_run_ = false;
};

}  // namespace attn::cuda
