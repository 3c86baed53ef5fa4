// Which queries a block of threads attends: a tile of one sequence's, for one head.
#pragma once

#include "cuda/device/sequences.cuh"
#include "problem/problem.h"

namespace attn::cuda {

// Tiles of kRows queries. Each batch element has as many; packed sequences take theirs from slots
// of one row of them, s from slot  start(s) / kRows + s  on, of which some stay empty. Rows that no
// sequence owns count as two more sequences, before the first and after the last.
template <int kRows>
struct QuerySlots {
  ATTN_INLINE static int64_t count(const Problem& p) {
    return p.sequences ? p.Mq / kRows + p.sequences.count + 2 : (p.Mq + kRows - 1) / kRows;
  }
  // Blocks of a grid that holds every head's tiles.
  ATTN_INLINE static int64_t blocks(const Problem& p) { return count(p) * p.Hq * p.B; }
};

struct QueryTile {
  Sequence sequence;
  int h = 0;
  int first = 0;            // query of the sequence
  int rows = 0;             // that there are; 0: none, the slot is empty
  bool is_outside = false;  // of every sequence: no key, nor a sink
};

// The rows that the pseudo-sequence `s` of QuerySlots begins with.
ATTN_DEVICE int64_t slot_start(const Problem& p, int64_t s) {
  return s == 0 ? 0 : clamp(p.sequences.q_start[s - 1], 0, p.Mq);
}

// Which queries slot `slot` of packed sequences holds.
template <int kRows>
ATTN_DEVICE QueryTile packed_query_tile(const Problem& p, int64_t slot) {
  int64_t s = 0, beyond = p.sequences.count + 2;
  while (beyond - s > 1) {  // the last sequence that begins at or before the slot
    const int64_t middle = (s + beyond) / 2;
    if (slot_start(p, middle) / kRows + middle <= slot) {
      s = middle;
    } else {
      beyond = middle;
    }
  }
  QueryTile tile;
  const int64_t first = (slot - slot_start(p, s) / kRows - s) * kRows;
  if (s == 0 || s == p.sequences.count + 1) {
    tile.is_outside = true;
    tile.sequence.q_begin = slot_start(p, s);
    tile.sequence.Mq = (s == 0 ? slot_start(p, 1) : p.Mq) - tile.sequence.q_begin;
  } else {
    tile.sequence = sequence_at(p, s - 1);
  }
  tile.first = static_cast<int>(first);
  tile.rows = static_cast<int>(clamp(tile.sequence.Mq - first, 0, kRows));
  return tile;
}

// Which queries block `block` of the grid attends. The last of a head come first: under a causal
// mask they take longest. Heads that share keys are neighbours.
template <int kRows>
ATTN_DEVICE QueryTile query_tile(const Problem& p, uint32_t block) {
  // Divided in 32 bits, which is much the quicker.
  const uint32_t slots = static_cast<uint32_t>(QuerySlots<kRows>::count(p));
  const uint32_t head = block / slots, heads = static_cast<uint32_t>(p.Hq);
  const int slot = static_cast<int>(slots - 1 - block % slots);
  QueryTile tile;
  if (p.sequences) {
    tile = packed_query_tile<kRows>(p, slot);
  } else {
    tile.sequence = sequence_at(p, head / heads);
    tile.first = slot * kRows;
    tile.rows = static_cast<int>(clamp(p.Mq - tile.first, 0, kRows));
  }
  tile.h = static_cast<int>(head % heads);
  return tile;
}

}  // namespace attn::cuda
