// Walks the lists of key blocks that block sparsity gives each block of queries.
#pragma once

#include <cstdint>

#include "cpu/kernels/arithmetic-inl.h"
#include "problem/problem.h"

namespace attn::cpu {
namespace {

// Calls visit(begin, end) for each run of keys within `within` that query i of head h sees.
template <class F>
void each_block_run(const Blocks& blocks, int64_t h, int64_t i, KeyRange within, F&& visit) {
  const int32_t* offsets = blocks.offsets + h * blocks.stride_h + i / blocks.size;
  const int32_t* at = blocks.indices + offsets[0];
  const int32_t* end = blocks.indices + offsets[1];
  const int64_t first = within.begin / blocks.size;
  for (int64_t count = end - at; count > 0;) {  // to the first block that is not before `first`
    const int64_t half = count / 2;
    if (at[half] < first) {
      at += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  while (at < end && *at * blocks.size < within.end) {
    const int64_t from = *at * blocks.size;
    int64_t to = from + blocks.size;
    for (++at; at < end && *at * blocks.size == to; ++at) to += blocks.size;
    visit(larger(from, within.begin), smaller(to, within.end));
  }
}

// Writes -infinity for the keys [begin, begin + n) that query i of head h does not see.
template <class Real>
void exclude_blocks(Real* to, const Blocks& blocks, int64_t h, int64_t i, int64_t begin,
                    int64_t n) {
  const auto exclude = [&](int64_t from, int64_t end) {
    for (int64_t c = from - begin; c < end - begin; ++c) to[c] = -kInfinity<Real>;
  };
  int64_t done = begin;
  each_block_run(blocks, h, i, {begin, begin + n}, [&](int64_t from, int64_t end) {
    exclude(done, from);
    done = end;
  });
  exclude(done, begin + n);
}

// Whether query i of head h sees any of the keys.
inline bool sees_blocks(const Blocks& blocks, int64_t h, int64_t i, KeyRange keys) {
  bool any = false;
  each_block_run(blocks, h, i, keys, [&](int64_t, int64_t) { any = true; });
  return any;
}

}  // namespace
}  // namespace attn::cpu
