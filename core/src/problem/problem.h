// One validated attention call, in the terms the kernels think in. Plain data: no maths, no STL.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem/inline.h"

namespace attn {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kBool, kInt32, kInt64 };

ATTN_INLINE constexpr int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kBool: return 1;
  }
  return 0;
}

// An array [B, M, H, width] whose last axis is contiguous. Strides in elements.
struct HeadRows {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride_b = 0;
  int64_t stride_m = 0;
  int64_t stride_h = 0;

  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
  ATTN_INLINE char* row(int64_t b, int64_t m, int64_t h) const {
    return data + (b * stride_b + m * stride_m + h * stride_h) * element_bytes(dtype);
  }
};

// An array [B, Hq, Mq] of one number per query row: lse and its gradient. Float32, or float64 for
// float64 problems. Strides in elements.
struct RowScalars {
  char* data = nullptr;
  int64_t stride_b = 0;
  int64_t stride_h = 0;
  int64_t stride_m = 0;

  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
  template <class Real>
  ATTN_INLINE Real& at(int64_t b, int64_t h, int64_t m) const {
    return reinterpret_cast<Real*>(data)[b * stride_b + h * stride_h + m * stride_m];
  }
};

// A tensor indexed by (b, h, i, j), broadcast where its stride is 0: the bias and its gradient.
struct Scores {
  char* data = nullptr;
  DType dtype = DType::kFloat32;  // kBool: a keep-mask
  int64_t stride_b = 0;
  int64_t stride_h = 0;
  int64_t stride_m = 0;  // along queries
  int64_t stride_n = 0;  // along keys

  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
  ATTN_INLINE char* row(int64_t b, int64_t h, int64_t i) const {
    return data + (b * stride_b + h * stride_h + i * stride_m) * element_bytes(dtype);
  }
};

struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Query i sees keys j with -left <= j - (i + shift) <= right, where shift is 0 or, anchored at the
// bottom right, Mkv - Mq. left and right are clamped so that no sum of them overflows.
struct Band {
  int64_t left = 0;
  int64_t right = 0;
  bool bottom_right = false;
};

// Queries over keys of their own: a batch element, or one of the packed sequences. Queries i in
// [0, Mq) and keys j in [0, Mkv) are counted within it.
struct Sequence {
  int64_t index = 0;    // among all of the call
  int64_t b = 0;        // the batch element its rows lie in
  int64_t q_begin = 0;  // the row of query 0
  int64_t Mq = 0;
  int64_t k_begin = 0;  // the row of key 0; with pages, its place in them
  int64_t Mkv = 0;
  int64_t first = 0, last = 0;     // query i sees keys [i + first, i + last) that there are
  int64_t diagonal = 0;            // query i lies on key i + diagonal
  const int32_t* pages = nullptr;  // the table of its pages, or null: its keys lie in a row
  int64_t page_size = 1;

  // The keys that query i sees by the band alone; empty ranges have begin == end.
  ATTN_INLINE KeyRange keys_of(int64_t i) const {
    int64_t begin = i + first;
    int64_t end = i + last;
    begin = begin < 0 ? 0 : begin > Mkv ? Mkv : begin;
    end = end < begin ? begin : end > Mkv ? Mkv : end;
    return {begin, end};
  }
  // The row in which key j lies.
  ATTN_INLINE int64_t key_row(int64_t j) const {
    const int64_t place = k_begin + j;
    return pages ? pages[place / page_size] * page_size + place % page_size : place;
  }
  // How many of the keys from j on lie in rows that follow each other, at most n.
  ATTN_INLINE int64_t keys_in_a_row(int64_t j, int64_t n) const {
    if (!pages) return n;
    const int64_t left = page_size - (k_begin + j) % page_size;
    return left < n ? left : n;
  }
};

// How the rows of query and key fall into sequences; none: each batch element is one.
struct Sequences {
  int64_t count = 0;
  const int32_t* q_start = nullptr;  // [count + 1]; null: none
  const int32_t* k_start = nullptr;  // [count + 1], or [count] with k_len
  const int32_t* k_len = nullptr;    // [count], or null

  ATTN_INLINE explicit operator bool() const { return q_start != nullptr; }
};

struct Pages {
  const int32_t* table = nullptr;  // [count, max_pages]; null: none
  int64_t stride = 0;              // from sequence to sequence
  int64_t max_pages = 0;
  int64_t size = 1;
  int64_t count = 0;  // of the pages that key and value hold
};

// Queries of block r see the keys of blocks indices[offsets[r]] .. indices[offsets[r + 1] - 1].
struct Blocks {
  const int32_t* offsets = nullptr;  // [1 or Hq, query blocks + 1]; null: none
  const int32_t* indices = nullptr;
  int64_t stride_h = 0;  // of offsets
  int64_t count = 0;     // of indices
  int64_t size = 1;

  ATTN_INLINE explicit operator bool() const { return offsets != nullptr; }
};

// Numbers per query head: [Hq, width] in the dtype of the query or float32.
struct HeadParameters {
  char* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride_h = 0;
  int64_t stride = 0;
  int64_t width = 1;

  ATTN_INLINE explicit operator bool() const { return data != nullptr; }
  ATTN_INLINE char* at(int64_t h, int64_t index = 0) const {
    return data + (h * stride_h + index * stride) * element_bytes(dtype);
  }
};

// What positions add to the scores from one side: scale * features . table[row of the distance].
struct PositionTerm {
  HeadRows features;        // [B, Mq or Mkv, Hq, width]
  bool is_content = false;  // the features are the query or the key
  HeadRows table;           // [num_table_rows, Hq, width]; a stride of 0 shares it
  int64_t num_table_rows = 0, width = 0;
  int64_t num_distances = 0;              // that the table tells apart
  const int32_t* table_row_of = nullptr;  // [num_distances]; null: one after the other

  ATTN_INLINE explicit operator bool() const { return static_cast<bool>(table); }
  ATTN_INLINE int64_t table_row(int64_t distance) const {
    return table_row_of ? table_row_of[distance] : distance;
  }
};

// With d the distance from the diagonal, both tables count it as clamp(d + zero_row). The names of
// attn/mask.h cross: features of queries meet key_table, those of keys query_table.
struct Positions {
  PositionTerm of_queries, of_keys;
  int64_t zero_row = 0;

  ATTN_INLINE explicit operator bool() const { return of_queries || of_keys; }
};

struct Dropout {
  bool enabled = false;
  uint32_t key[2] = {0, 0};  // derived from seed and offset, see attn/mask.h
  uint32_t threshold = 0;    // a draw below it drops the probability
  double keep_scale = 1.0;   // 1 / (1 - p); 0 if p = 1
};

// What forward and backward share.
struct Problem {
  int64_t B = 0, Mq = 0, Mkv = 0, Hq = 0, Hkv = 0, G = 0, K = 0, Kv = 0;
  double scale = 1.0;
  HeadRows query, key, value;  // alike in dtype
  HeadRows out;                // forward: written; backward: read
  RowScalars lse;              // forward: written if present; backward: read
  Band band;
  Scores bias;
  Dropout dropout;
  Sequences sequences;
  Pages pages;
  Blocks blocks;
  HeadParameters slopes, table, sink;
  double softcap = 0.0;  // 0: none
  Positions positions;
  // Bounds of what any sequence has.
  int64_t num_sequences = 0, most_queries = 0, most_keys = 0;

  ATTN_INLINE Sequence sequence(int64_t index) const {
    Sequence s;
    s.index = index;
    if (sequences) {
      s.q_begin = sequences.q_start[index];
      s.Mq = sequences.q_start[index + 1] - s.q_begin;
      s.k_begin = sequences.k_start[index];
      s.Mkv = sequences.k_len ? sequences.k_len[index] : sequences.k_start[index + 1] - s.k_begin;
    } else {
      s.b = index;
      s.Mq = Mq;
      s.Mkv = Mkv;
    }
    if (pages.table) {
      s.pages = pages.table + index * pages.stride;
      s.page_size = pages.size;
    }
    s.diagonal = band.bottom_right ? s.Mkv - s.Mq : 0;
    s.first = s.diagonal - band.left;
    s.last = s.diagonal + band.right + 1;
    return s;
  }
};

struct ForwardProblem : Problem {};

struct BackwardProblem : Problem {
  HeadRows grad_out;
  RowScalars grad_lse;                        // optional
  HeadRows grad_query, grad_key, grad_value;  // written where present
  Scores grad_bias;                           // written where present; stride 0 sums
  // Whether grad_bias sums over an axis; an axis of extent 1 in the problem is not summed.
  bool grad_bias_sums_b = false, grad_bias_sums_h = false, grad_bias_sums_m = false,
       grad_bias_sums_n = false;
  HeadParameters grad_slopes, grad_table, grad_sink;  // written where present
  // Written where present: the gradients of positions' features and tables, laid out like them.
  HeadRows grad_position_query, grad_key_table, grad_position_key, grad_query_table;
  // The kernels' own, in their workspace: a large lse in two numbers, to base 2.
  RowScalars lse_maximum, lse_rest;
};

}  // namespace attn
