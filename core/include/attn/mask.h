/* The one description of which keys a query sees, and with what weight. */
#ifndef ATTN_MASK_H
#define ATTN_MASK_H

#include <stddef.h>
#include <stdint.h>

#include "attn/tensor.h"

/* A band side that never excludes a key. */
#define ATTN_UNBOUNDED INT64_MAX

#define ATTN_ANCHOR_TOP_LEFT 0     /* the diagonal starts at query 0, key 0 */
#define ATTN_ANCHOR_BOTTOM_RIGHT 1 /* the diagonal ends at the last query, the last key */

/* Query i sees key j if  -left <= j - (i + shift) <= right,  where shift is 0 for the top-left
   anchor and Mkv - Mq for the bottom-right one (per sequence, if there are sequences).
   Causal is {ATTN_UNBOUNDED, 0}; the last w keys up to the diagonal are {w - 1, 0}. */
typedef struct attn_band {
  int64_t left;     /* keys before the diagonal, or ATTN_UNBOUNDED; may be negative */
  int64_t right;    /* keys after the diagonal, or ATTN_UNBOUNDED; may be negative */
  int32_t anchor;   /* ATTN_ANCHOR_* */
  int32_t reserved; /* 0 */
} attn_band;

/* Packed, padded or gappy sequences, in tensors of batch 1: sequence s owns the queries
   [q_start[s], q_start[s + 1]) and the keys [k_start[s], k_start[s] + k_len[s]), and its queries
   see its keys alone. The band applies to each sequence's own queries and keys, counted from 0.
   A query outside every sequence sees no key, nor a sink. The tensors lie on the query's device.
   On a CPU, numbers that break this are refused. On a GPU no call reads them: kernels take starts
   and lengths as cut off at the tensors' ends, and at max_q_len and max_k_len. */
typedef struct attn_sequences {
  const attn_tensor* q_start; /* int32 [n + 1], not descending; NULL: no sequences */
  const attn_tensor* k_start; /* int32 [n + 1], not descending, or [n] or more with k_len */
  const attn_tensor* k_len;   /* int32 [n], or NULL: k_start[s + 1] - k_start[s] */
  int64_t max_q_len; /* no sequence has more queries; 0: not known. Scratch grows with it */
  int64_t max_k_len; /* no sequence has more keys; 0: not known */
} attn_sequences;

/* Keys in pages: key j of sequence s lies in slot  block_table[s, t / page_size] * page_size +
   t % page_size  with t = k_start[s] + j. Needs sequences with k_len. Pages may be shared. */
typedef struct attn_pages {
  const attn_tensor* block_table; /* int32 [n, max_pages]; NULL: no pages */
  int64_t page_size;              /* keys per page, >= 1 */
} attn_pages;

/* Block sparsity: the queries of block r see the keys of blocks
   indices[offsets[h, r]] .. indices[offsets[h, r + 1] - 1]. Not with sequences. */
typedef struct attn_blocks {
  const attn_tensor* offsets; /* int32 [1 or Hq, query_blocks + 1]; NULL: no blocks */
  const attn_tensor* indices; /* int32 [count], ascending within each list */
  int64_t block_size;         /* queries and keys per block, >= 1 */
} attn_blocks;

/* Biases of the distance d = j - (i + shift) from the band's diagonal, computed in the kernel.
   Source of slopes: Press et al. 2022, arXiv:2108.12409; of table: Shaw et al. 2018,
   arXiv:1803.02155, and Raffel et al. 2020, arXiv:1910.10683, section 2.1. */
typedef struct attn_relative {
  const attn_tensor* slopes; /* [Hq]: adds -slopes[h] * |d|; or NULL */
  const attn_tensor* table;  /* [Hq, 2 R + 1]: adds table[h, clamp(d, -R, R) + R]; or NULL */
} attn_relative;

/* Scores of relative positions, computed in the kernel after softcap, in float32 (float64 for
   float64). With d = j - (i + shift) the distance from the band's diagonal and
   r = clamp(d + zero_row, 0, Z - 1), a score gains
   scale * (query[b, i, h] . key_table[h, r] + key[b, j, h] . query_table[h, r]).
   Features are [B, M, Hq, width] with a head for each of query's, tables [Hq or 1, Z, width]; those
   of queries and those of keys have widths and Z of their own. All have contiguous rows and hold
   the query's dtype, or float32 beside a narrower one. Not with sequences.
   Features that are NULL beside a table are attention's own query or key, whose gradients hold
   theirs too; keys take Hkv equal to Hq then.
   Where a table has rows by distance, int32 [D], r is rows[clamp(d + zero_row, 0, D - 1)], in
   [0, Z): distances may share rows, as in DeBERTa's buckets.
   Source: Shaw et al. 2018, arXiv:1803.02155; Dai et al. 2019, arXiv:1901.02860, section 3.3; He et
   al. 2020, arXiv:2006.03654, eq. 4. */
typedef struct attn_positions {
  const attn_tensor* query;            /* [B, Mq, Hq, Kp], or NULL */
  const attn_tensor* key_table;        /* [Hq or 1, Z, Kp]; NULL: no positions of keys */
  const attn_tensor* key;              /* [B, Mkv, Hq, Kp'], or NULL */
  const attn_tensor* query_table;      /* [Hq or 1, Z', Kp']; NULL: no positions of queries */
  int64_t zero_row;                    /* of both: where distance 0 lies, in them or not */
  const attn_tensor* key_table_rows;   /* [D], or NULL: row r for the r-th distance */
  const attn_tensor* query_table_rows; /* [D'], or NULL */
} attn_positions;

/* Drops each probability with chance p and scales the kept ones by 1 / (1 - p).
   The draw for (b, h, i, j) is word j % 4 of Philox4x32-10 at counter (b, h, i, j / 4); its key is
   words 0 and 1 of Philox4x32-10 with key = seed, counter = offset, both with their low 32 bits in
   word 0, the high ones in word 1, and 0 beyond. A probability is kept if its draw >= p * 2^32. It
   depends on nothing else, so the backward redraws the same mask. i is the row of query in memory;
   j counts the keys of the sequence, from 0. */
typedef struct attn_dropout {
  double p; /* in [0, 1]; 0 switches dropout off */
  uint64_t seed;
  uint64_t offset;
} attn_dropout;

/* Parts combine: a key is seen if every part lets it be seen, and what they add is added up.
   Tensors of parameters hold the query's dtype or float32. Initialise with ATTN_MASK_INIT. */
typedef struct attn_mask {
  size_t struct_size; /* sizeof(attn_mask) */
  attn_band band;
  /* Broadcastable to [B, Hq, Mq, Mkv] (extents of 1 or strides of 0), any strides, its data
     aligned to its element; i and j count the rows of query and key as they lie in memory. Added
     to the scaled scores in the query's dtype or float32; or bool: true keeps a key. At or below
     -FLT_MAX / log2(e) (-DBL_MAX for double) it counts as -infinity, and above its opposite as
     infinity. Scores added to a large number are rounded to its last place. */
  const attn_tensor* bias;
  attn_dropout dropout;
  attn_sequences sequences;
  attn_pages pages;
  attn_blocks blocks;
  attn_relative relative;
  attn_positions positions;
  const attn_tensor* sink; /* [Hq]: a logit that joins each row's softmax and carries no value; it
                              counts in lse; or NULL */
  double softcap;          /* > 0: scaled scores s become softcap * tanh(s / softcap), before any
                              bias; 0 switches it off */
} attn_mask;

#define ATTN_MASK_INIT                      \
  {sizeof(attn_mask),                       \
   {ATTN_UNBOUNDED, ATTN_UNBOUNDED, 0, 0},  \
   NULL,                                    \
   {0.0, 0, 0},                             \
   {NULL, NULL, NULL, 0, 0},                \
   {NULL, 0},                               \
   {NULL, NULL, 0},                         \
   {NULL, NULL},                            \
   {NULL, NULL, NULL, NULL, 0, NULL, NULL}, \
   NULL,                                    \
   0.0}

#endif /* ATTN_MASK_H */
