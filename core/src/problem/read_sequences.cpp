// Checks every start, length, page and block index before a kernel follows it.
#include "problem/read_sequences.h"

#include <algorithm>
#include <utility>

#include "problem/read_operands.h"
#include "problem/refusal.h"

namespace attn {
namespace {

using ll = long long;

// Larger pages and blocks hold no more keys, for there are fewer; sums with their size overflow.
constexpr int64_t kLargestSize = int64_t{1} << 31;
// As far as an int32 start and an int32 length reach.
constexpr int64_t kMostPlaces = int64_t{1} << 32;

TensorSpec integer_list(const char* name, Axis count) {
  return {.name = name, .access = Access::kRead, .dtypes = only(DType::kInt32), .axes = {count}};
}

// An extent that no other argument sets.
int64_t own_extent(const attn_tensor* tensor, int axis) {
  const bool readable = tensor && tensor->ndim > axis && tensor->shape;
  return readable ? tensor->shape[axis] : kAnyExtent;
}

void check_bound(const char* name, int64_t bound) {
  if (bound < 0) {
    refuse_argument("expected sequences.%s >= 0, got %lld; pass 0 if it is not known", name,
                    static_cast<ll>(bound));
  }
}

int64_t bounded(int64_t most, int64_t bound) { return bound > 0 ? std::min(most, bound) : most; }

// Starts must not descend, and must end within `rows` rows of `owner`.
void check_starts(const char* name, const int32_t* start, int64_t count, int64_t rows,
                  const char* owner) {
  int64_t before = 0;
  for (int64_t s = 0; s <= count; ++s) {
    if (start[s] < before || start[s] > rows) {
      refuse_argument(
          "expected %s not to descend and to stay within %s's %lld rows, got %s[%lld] = %d after "
          "%lld; pass the lengths summed up once",
          name, owner, static_cast<ll>(rows), name, static_cast<ll>(s), start[s],
          static_cast<ll>(before));
    }
    before = start[s];
  }
}

void check_lengths(const Problem& problem, int64_t places, const char* what) {
  const Sequences& sequences = problem.sequences;
  for (int64_t s = 0; s < sequences.count; ++s) {
    const int64_t start = sequences.k_start[s], length = sequences.k_len[s];
    for (const auto& [name, number] : {std::pair("k_start", start), std::pair("k_len", length)}) {
      if (number >= 0) continue;
      refuse_argument("expected sequences.%s >= 0, got %lld in sequence %lld; count keys from 0",
                      name, static_cast<ll>(number), static_cast<ll>(s));
    }
    if (start + length > places) {
      refuse_argument(
          "expected the keys of sequence %lld within %s, got k_start %lld and k_len %lld where "
          "there is room for %lld; shorten k_len",
          static_cast<ll>(s), what, static_cast<ll>(start), static_cast<ll>(length),
          static_cast<ll>(places));
    }
  }
}

void check_within_bounds(const Problem& problem) {
  for (int64_t s = 0; s < problem.num_sequences; ++s) {
    const Sequence sequence = problem.sequence(s);
    if (sequence.Mq > problem.most_queries || sequence.Mkv > problem.most_keys) {
      refuse_argument(
          "expected every sequence within max_q_len and max_k_len, %lld queries and %lld keys, got "
          "%lld and %lld in sequence %lld; raise them or pass 0",
          static_cast<ll>(problem.most_queries), static_cast<ll>(problem.most_keys),
          static_cast<ll>(sequence.Mq), static_cast<ll>(sequence.Mkv), static_cast<ll>(s));
    }
  }
}

void check_pages(const Problem& problem) {
  const int64_t num_pages = problem.pages.count;
  for (int64_t s = 0; s < problem.num_sequences; ++s) {
    const Sequence sequence = problem.sequence(s);
    const int64_t begin = sequence.k_begin / sequence.page_size;
    const int64_t end =
        (sequence.k_begin + sequence.Mkv + sequence.page_size - 1) / sequence.page_size;
    for (int64_t page = sequence.Mkv > 0 ? begin : end; page < end; ++page) {
      if (sequence.pages[page] >= 0 && sequence.pages[page] < num_pages) continue;
      refuse_argument(
          "expected pages.block_table[%lld, %lld] to be one of key's %lld pages, got %d; pass the "
          "page's index",
          static_cast<ll>(s), static_cast<ll>(page), static_cast<ll>(num_pages),
          sequence.pages[page]);
    }
  }
}

void read_pages(const attn_pages& pages, TensorReader& reader, Problem& problem) {
  if (pages.page_size < 1) {
    refuse_argument("expected pages.page_size >= 1, got %lld; pass the keys per page",
                    static_cast<ll>(pages.page_size));
  }
  const TensorReader::Integers table = reader.integers(
      {.name = "pages.block_table",
       .access = Access::kRead,
       .dtypes = only(DType::kInt32),
       .axes = {axis("n", problem.num_sequences, "sequences.q_start"), free_axis("max_pages")}},
      2, pages.block_table);
  const int64_t size = std::min(pages.page_size, kLargestSize);
  problem.pages = {.table = table.data,
                   .stride = table.stride,
                   .max_pages = pages.block_table->shape[1],
                   .size = size,
                   .count = problem.Mkv / size};
}

void read_q_start(const attn_sequences& given, TensorReader& reader, Problem& problem) {
  problem.sequences.q_start =
      reader.integers(integer_list("sequences.q_start", free_axis("n + 1")), 1, given.q_start).data;
  problem.sequences.count = given.q_start->shape[0] - 1;
  if (problem.sequences.count < 0) {
    refuse_argument("expected sequences.q_start to have n + 1 entries, got 0; begin it with 0");
  }
  if (problem.B != 1) {
    refuse_argument("expected query's B to be 1 with sequences, got %lld; pack them along M",
                    static_cast<ll>(problem.B));
  }
}

void read_key_ranges(const attn_sequences& given, TensorReader& reader, Problem& problem) {
  Sequences& sequences = problem.sequences;
  int64_t starts = sequences.count + 1;
  if (given.k_len) {
    sequences.k_len = reader
                          .integers(integer_list("sequences.k_len",
                                                 axis("n", sequences.count, "sequences.q_start")),
                                    1, given.k_len)
                          .data;
    starts = std::max(own_extent(given.k_start, 0), sequences.count);
  }
  sequences.k_start =
      reader
          .integers(integer_list("sequences.k_start", axis("n + 1", starts, "sequences.q_start")),
                    1, given.k_start)
          .data;
}

void check_contents(const Problem& problem) {
  const Sequences& sequences = problem.sequences;
  check_starts("sequences.q_start", sequences.q_start, sequences.count, problem.Mq, "query");
  if (!sequences.k_len) {
    check_starts("sequences.k_start", sequences.k_start, sequences.count, problem.Mkv, "key");
  } else if (problem.pages.table) {
    check_lengths(problem, problem.pages.max_pages * problem.pages.size, "its pages");
  } else {
    check_lengths(problem, problem.Mkv, "key's rows");
  }
  check_within_bounds(problem);
  if (problem.pages.table) check_pages(problem);
}

void check_block_lists(const Blocks& blocks, int64_t heads, int64_t query_blocks,
                       int64_t key_blocks, int64_t count) {
  for (int64_t h = 0; h < heads; ++h) {
    const int32_t* offsets = blocks.offsets + h * blocks.stride_h;
    for (int64_t r = 0; r < query_blocks; ++r) {
      if (offsets[r] < 0 || offsets[r + 1] < offsets[r] || offsets[r + 1] > count) {
        refuse_argument(
            "expected blocks.offsets to ascend within the %lld indices, got %d then %d at [%lld, "
            "%lld]; pass cumulative counts",
            static_cast<ll>(count), offsets[r], offsets[r + 1], static_cast<ll>(h),
            static_cast<ll>(r));
      }
      int64_t before = -1;
      for (int64_t at = offsets[r]; at < offsets[r + 1]; ++at) {
        if (blocks.indices[at] <= before || blocks.indices[at] >= key_blocks) {
          refuse_argument(
              "expected blocks.indices to ascend below %lld within a list, got %d after %lld at "
              "[%lld]; sort them",
              static_cast<ll>(key_blocks), blocks.indices[at], static_cast<ll>(before),
              static_cast<ll>(at));
        }
        before = blocks.indices[at];
      }
    }
  }
}

}  // namespace

void read_sequences(const attn_sequences& given, const attn_pages& pages, TensorReader& reader,
                    Problem& problem) {
  problem.num_sequences = problem.B;
  problem.most_queries = problem.Mq;
  problem.most_keys = problem.Mkv;
  if (!pages.block_table && pages.page_size != 0) {
    refuse_argument("expected pages.page_size to be 0 without a block_table, got %lld; pass both",
                    static_cast<ll>(pages.page_size));
  }
  if (!given.q_start) {
    if (given.k_start || given.k_len || pages.block_table) {
      refuse_argument("expected sequences.q_start to be a tensor, got NULL; %s need sequences",
                      pages.block_table ? "pages" : "keys' ranges");
    }
    return;
  }
  check_bound("max_q_len", given.max_q_len);
  check_bound("max_k_len", given.max_k_len);
  read_q_start(given, reader, problem);
  problem.num_sequences = problem.sequences.count;
  read_key_ranges(given, reader, problem);
  if (pages.block_table) {
    if (!given.k_len) {
      refuse_argument("expected sequences.k_len to be a tensor, got NULL; pages need it");
    }
    read_pages(pages, reader, problem);
    problem.most_keys = std::min(problem.pages.max_pages * problem.pages.size, kMostPlaces);
  }
  problem.most_queries = bounded(problem.most_queries, given.max_q_len);
  problem.most_keys = bounded(problem.most_keys, given.max_k_len);
  if (reader.reads_data()) check_contents(problem);
}

void read_blocks(const attn_blocks& given, TensorReader& reader, Problem& problem) {
  if (!given.offsets) {
    if (given.indices || given.block_size != 0) {
      refuse_argument(
          "expected blocks.offsets to be a tensor, got NULL; pass all of blocks or nothing");
    }
    return;
  }
  if (problem.sequences) {
    refuse_unsupported(
        "expected blocks or sequences, got both; no kernel combines them, call once per sequence");
  }
  if (given.block_size < 1) {
    refuse_argument("expected blocks.block_size >= 1, got %lld; pass the keys per block",
                    static_cast<ll>(given.block_size));
  }
  const int64_t size = std::min(given.block_size, kLargestSize);
  const int64_t query_blocks = (problem.Mq + size - 1) / size;
  const int64_t key_blocks = (problem.Mkv + size - 1) / size;
  const TensorReader::Integers offsets =
      reader.integers({.name = "blocks.offsets",
                       .access = Access::kRead,
                       .dtypes = only(DType::kInt32),
                       .axes = {broadcast_axis("Hq", problem.Hq, "query"),
                                axis("query_blocks + 1", query_blocks + 1, "query")}},
                      2, given.offsets);
  const int64_t count = own_extent(given.indices, 0);
  problem.blocks = {
      .offsets = offsets.data,
      .indices =
          reader.integers(integer_list("blocks.indices", free_axis("count")), 1, given.indices)
              .data,
      .stride_h = offsets.stride,
      .count = count,
      .size = size};
  if (reader.reads_data()) {
    check_block_lists(problem.blocks, given.offsets->shape[0], query_blocks, key_blocks, count);
  }
}

}  // namespace attn
