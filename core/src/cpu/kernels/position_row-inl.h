// What positions add to one query's scores, a dot product each: packing the table would take longer
// than the few rows of a decoding task do.
#pragma once

#include <cstdint>

#include "cpu/kernels/position_scores-inl.h"
#include "cpu/kernels/scores-inl.h"

namespace attn::cpu {
namespace {

// Writes what positions add to the scores of a row of a tile, in base 2.
template <class S>
void load_position_row(typename S::Real* to, const Problem& p, const ScoresAt& at) {
  const auto scale = static_cast<typename S::Real>(p.scale * kLog2E);
  const PositionTerm &queries = p.positions.of_queries, &keys = p.positions.of_keys;
  const int64_t b = at.sequence.b, first = at.distance() + p.positions.zero_row;
  for (int64_t c = 0; c < at.n; ++c) {
    to[c] = 0;
    if (queries) {
      const int64_t place = queries.table_row(clamp_to(first + c, queries.num_distances - 1));
      const char* row = queries.table.row(0, place, at.h);
      to[c] += scale * dot_rows<S>(queries.features.row(b, at.i, at.h), queries.features.dtype, row,
                                   queries.table.dtype, queries.width);
    }
    if (keys) {
      const int64_t place = keys.table_row(clamp_to(first + c, keys.num_distances - 1));
      const char* row = keys.table.row(0, place, at.h);
      to[c] += scale * dot_rows<S>(keys.features.row(b, at.begin + c, at.h), keys.features.dtype,
                                   row, keys.table.dtype, keys.width);
    }
  }
}

}  // namespace
}  // namespace attn::cpu
