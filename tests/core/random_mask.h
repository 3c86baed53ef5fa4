// Random masks of every part: the tensors are added to a problem's arrays, the numbers returned.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "calls.h"
#include "chance.h"

using Integers = std::vector<int64_t>;

// What the library must not read: an entry for no key, or past the last list.
constexpr int64_t kUnread = -77;

inline void add_random_bias(Arrays& arrays, const Shape& s, attn_dtype dtype,
                            Generator& generator) {
  const auto extent = [&](int64_t n) { return one_in(generator, 3) ? 1 : n; };
  const attn_dtype choices[] = {dtype, kFloat32, kBool};
  arrays.add_bias(any_of(generator, choices),
                  {extent(s.B), extent(s.Hq), extent(s.Mq), extent(s.Mkv)}, generator());
  if (same(arrays.bias.dtype(), kBool)) return;
  for (int64_t i = 0; i < arrays.bias.size(); ++i) {
    if (one_in(generator, 6)) arrays.bias.set(i, -HUGE_VAL);
  }
}

inline attn_band random_band(const Shape& s, Generator& generator) {
  const auto side = [&] {
    return one_in(generator, 2) ? ATTN_UNBOUNDED : below(generator, s.Mkv + 20) - 10;
  };
  return {side(), side(), static_cast<int32_t>(below(generator, 2)), 0};
}

inline void add_random_parameters(Arrays& arrays, attn_dtype dtype, Generator& generator) {
  constexpr int64_t kRadii[] = {0, 1, 7, 40, 300};
  const attn_dtype choices[] = {dtype, kFloat32};
  if (one_in(generator, 4)) arrays.add_slopes(any_of(generator, choices), generator());
  if (one_in(generator, 4)) {
    arrays.add_table(any_of(generator, choices), any_of(generator, kRadii), generator());
  }
  if (one_in(generator, 4)) arrays.add_sink(any_of(generator, choices), generator());
}

// Which of a table's rows each distance reads; or nothing.
inline Array random_places(int64_t distances, int64_t rows, Generator& generator) {
  if (!one_in(generator, 3)) return {};
  Integers places(distances);
  for (int64_t& place : places) place = below(generator, rows);
  return Array::integers(places);
}

// Tables of one row, of every distance, or short ones whose ends repeat; of features of their own,
// or of queries and keys.
inline void add_random_positions(Arrays& arrays, attn_mask& mask, const Shape& s, attn_dtype dtype,
                                 Generator& generator) {
  constexpr int64_t kWidths[] = {1, 3, 8, 17, 40, 72};
  const int64_t kRows[] = {1, 2, 9, 33, s.Mq + s.Mkv};
  const attn_dtype choices[] = {dtype, same(dtype, kFloat64) ? dtype : kFloat32};
  const auto heads = [&] { return one_in(generator, 2) ? 1 : s.Hq; };
  const int64_t rows = any_of(generator, kRows);
  if (!one_in(generator, 3)) {
    if (one_in(generator, 3)) {
      arrays.add_content_positions(false, any_of(generator, choices), rows, heads(), generator());
    } else {
      arrays.add_query_positions(any_of(generator, choices), any_of(generator, kWidths), rows,
                                 heads(), generator());
    }
    arrays.key_table_rows = random_places(any_of(generator, kRows), rows, generator);
  }
  if (!one_in(generator, 3)) {
    const int64_t key_rows = one_in(generator, 2) ? rows : any_of(generator, kRows);
    if (s.Hq == s.Hkv && one_in(generator, 2)) {
      arrays.add_content_positions(true, any_of(generator, choices), key_rows, heads(),
                                   generator());
    } else {
      arrays.add_key_positions(any_of(generator, choices), any_of(generator, kWidths), key_rows,
                               heads(), generator());
    }
    arrays.query_table_rows = random_places(any_of(generator, kRows), key_rows, generator);
  }
  mask.positions.zero_row = one_in(generator, 3) ? below(generator, 60) - 20 : rows / 2;
}

// n + 1 starts that do not descend, within `rows`; often from the first row on, to the last.
inline Integers random_starts(int64_t n, int64_t rows, Generator& generator) {
  Integers starts(n + 1);
  for (int64_t& start : starts) start = below(generator, rows + 1);
  std::sort(starts.begin(), starts.end());
  if (!one_in(generator, 3)) starts.front() = 0;
  if (n > 0 && !one_in(generator, 3)) starts.back() = rows;
  return starts;
}

// Key ranges of their own within `places`, overlapping or not.
inline void add_random_ranges(Arrays& arrays, int64_t n, int64_t places, Generator& generator) {
  Integers starts(n), lengths(n);
  for (int64_t s = 0; s < n; ++s) {
    starts[s] = below(generator, places + 1);
    lengths[s] = one_in(generator, 6) ? 0 : below(generator, places - starts[s] + 1);
  }
  if (one_in(generator, 2)) starts.push_back(kUnread);
  arrays.k_start = Array::integers(starts);
  arrays.k_len = Array::integers(lengths);
}

// Pages in any order, some in several sequences or twice in one.
inline void add_random_pages(Arrays& arrays, attn_mask& mask, int64_t n, const Shape& s,
                             Generator& generator) {
  constexpr int64_t kSizes[] = {1, 3, 7, 16};
  const int64_t size = any_of(generator, kSizes);
  const int64_t pages = s.Mkv / size;
  const int64_t most = std::min<int64_t>(pages + 2, one_in(generator, 2) ? 6 : 400);
  add_random_ranges(arrays, n, pages == 0 ? 0 : most * size, generator);
  Integers table(n * most, kUnread);
  for (int64_t sequence = 0; sequence < n; ++sequence) {
    const int64_t start = static_cast<int64_t>(arrays.k_start.get(sequence));
    const int64_t length = static_cast<int64_t>(arrays.k_len.get(sequence));
    if (length == 0) continue;
    const bool in_order = one_in(generator, 2);
    for (int64_t page = start / size; page <= (start + length - 1) / size; ++page) {
      table[sequence * most + page] =
          in_order ? (pages - 1 + page * 5) % pages : below(generator, pages);
    }
  }
  arrays.block_table = Array(kInt32, {n, most});
  for (int64_t i = 0; i < n * most; ++i) arrays.block_table.set(i, 1.0 * table[i]);
  mask.pages.page_size = size;
}

// Bounds of the sequences' lengths: none, just enough, or more.
inline void add_random_bounds(const Arrays& arrays, attn_mask& mask, Generator& generator) {
  const auto longest = [](const Array& starts, const Array& lengths, int64_t n) {
    int64_t most = 0;
    for (int64_t s = 0; s < n; ++s) {
      const double length = lengths.exists() ? lengths.get(s) : starts.get(s + 1) - starts.get(s);
      most = std::max(most, static_cast<int64_t>(length));
    }
    return most;
  };
  const int64_t n = arrays.q_start.extent(0) - 1;
  if (one_in(generator, 2)) {
    mask.sequences.max_q_len = longest(arrays.q_start, {}, n) + below(generator, 3);
  }
  if (one_in(generator, 2)) {
    mask.sequences.max_k_len = longest(arrays.k_start, arrays.k_len, n) + below(generator, 3);
  }
}

inline void add_random_sequences(Arrays& arrays, attn_mask& mask, const Shape& s,
                                 Generator& generator) {
  constexpr int64_t kCounts[] = {0, 1, 2, 2, 3, 3, 5, 9};
  const int64_t n = any_of(generator, kCounts);
  arrays.q_start = Array::integers(random_starts(n, s.Mq, generator));
  switch (below(generator, 3)) {
    case 0: arrays.k_start = Array::integers(random_starts(n, s.Mkv, generator)); break;
    case 1: add_random_ranges(arrays, n, s.Mkv, generator); break;
    case 2: add_random_pages(arrays, mask, n, s, generator); break;
  }
  add_random_bounds(arrays, mask, generator);
}

inline void add_random_blocks(Arrays& arrays, attn_mask& mask, const Shape& s,
                              Generator& generator) {
  constexpr int64_t kSizes[] = {1, 5, 16, 64, 1000};
  const int64_t size = any_of(generator, kSizes);
  const int64_t heads = one_in(generator, 2) ? 1 : s.Hq;
  const int64_t rarity = 1 + below(generator, 4);
  Integers offsets, indices;
  for (int64_t h = 0; h < heads; ++h) {
    offsets.push_back(static_cast<int64_t>(indices.size()));
    for (int64_t r = 0; r * size < s.Mq; ++r) {
      for (int64_t block = 0; block * size < s.Mkv; ++block) {
        if (one_in(generator, rarity)) indices.push_back(block);
      }
      offsets.push_back(static_cast<int64_t>(indices.size()));
    }
  }
  arrays.offsets = Array::integers(offsets, heads);
  if (one_in(generator, 2)) indices.push_back(kUnread);
  arrays.indices = Array::integers(indices);
  mask.blocks.block_size = size;
}

// Any parts together. Sequences need s.B to be 1.
inline attn_mask add_random_mask(Arrays& arrays, const Shape& s, attn_dtype dtype,
                                 Generator& generator) {
  constexpr double kCaps[] = {0.5, 3.0, 40.0};
  attn_mask mask = ATTN_MASK_INIT;
  if (one_in(generator, 2)) add_random_bias(arrays, s, dtype, generator);
  if (one_in(generator, 2)) mask.band = random_band(s, generator);
  if (one_in(generator, 4)) mask.dropout = {.p = 0.25, .seed = generator(), .offset = generator()};
  if (one_in(generator, 4)) mask.softcap = any_of(generator, kCaps);
  add_random_parameters(arrays, dtype, generator);
  const bool has_positions = one_in(generator, 3);
  if (has_positions) add_random_positions(arrays, mask, s, dtype, generator);
  if (s.B == 1 && !has_positions && !one_in(generator, 3)) {
    add_random_sequences(arrays, mask, s, generator);
  } else if (one_in(generator, 2)) {
    add_random_blocks(arrays, mask, s, generator);
  }
  return mask;
}
